"""Joint laws of a few slots that can be counted out: the model of one, and the exact laws of tempered decoding.

R canvases, L slots, V letters, X = V^L answers. Answers are numbered by their letters, the first slot first.
"""

import numpy as np
import torch

from tests.samplers.table_model import TableModel


class Joint:
    """p(answer), and its exact conditionals."""

    def __init__(self, p_X: np.ndarray, *, num_letters: int) -> None:
        self.p_X, self.V = p_X / p_X.sum(), num_letters
        self.L = round(np.log(len(p_X)) / np.log(num_letters))
        self.answer_XL = np.array(np.unravel_index(np.arange(len(p_X)), (num_letters,) * self.L)).T

    @staticmethod
    def random(seed: int, *, coupling: float = 0.5, num_slots: int = 6, num_letters: int = 3) -> "Joint":
        """log p is a sum of normal numbers, one for the letters of each pair of slots."""
        generator = np.random.default_rng(seed)
        letter_LX = np.array(np.unravel_index(np.arange(num_letters**num_slots), (num_letters,) * num_slots))
        energy_X = np.zeros(num_letters**num_slots)
        for one in range(num_slots):
            for other in range(one + 1, num_slots):
                energy_X += coupling * generator.normal(size=(num_letters,) * 2)[letter_LX[one], letter_LX[other]]
        return Joint(np.exp(energy_X), num_letters=num_letters)

    def fits(self, token_RL: np.ndarray) -> np.ndarray:
        """bool (R, X): answers that agree with what is known; -1 is masked."""
        fits_RX = np.ones((len(token_RL), len(self.p_X)), dtype=bool)
        for slot in range(self.L):
            known_R1 = token_RL[:, slot, None]
            fits_RX &= (known_R1 == -1) | (self.answer_XL[:, slot] == known_R1)
        return fits_RX

    def conditionals(self, token_RL: np.ndarray) -> np.ndarray:
        """p(slot = letter | what is known) as (R, L, V)."""
        weight_RX = self.fits(token_RL) * self.p_X
        one_hot_XLV = np.eye(self.V)[self.answer_XL]
        law_RLV = (weight_RX @ one_hot_XLV.reshape(len(self.p_X), -1)).reshape(-1, self.L, self.V)
        return law_RLV / weight_RX.sum(axis=1)[:, None, None]

    def tempered(self, alpha: float) -> np.ndarray:
        """p^alpha / Z."""
        return self.p_X**alpha / (self.p_X**alpha).sum()

    def number(self, token_RL: torch.Tensor) -> np.ndarray:
        """Number of each answer."""
        return np.ravel_multi_index(tuple(token_RL.numpy().T), (self.V,) * self.L)


class JointModel(TableModel):
    """The forward of canvases of a joint law; counts the candidates it is asked for."""

    def __init__(self, joint: Joint, token_RL: torch.Tensor) -> None:
        super().__init__(torch.from_numpy(joint.conditionals(token_RL.numpy())).float())
        self.joint, self.token_RL, self.num_candidates = joint, token_RL, 0

    def with_tokens(self, row_K, column_K, token_K) -> "JointModel":
        self.num_candidates += len(row_K)
        token_KL = self.token_RL[row_K].clone()
        token_KL[torch.arange(len(row_K)), column_K] = token_K
        return JointModel(self.joint, token_KL)


def decoding_law(
    joint: Joint, *, alpha: float, candidates: int = 0, by_confidence: bool = True, exact_lookahead: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Exact law of the answers (X,) of token-level Metropolis, and log W (X,) of each answer's path.

    Slots by confidence, ties to the lower one; or left to right. The exact look-ahead is the sum over completions.
    """
    token_NL, mass_N, log_w_N = np.full((1, joint.L), -1), np.ones(1), np.zeros(1)
    for _ in range(joint.L):
        law_NLV = joint.conditionals(token_NL)
        rank_NL = law_NLV.max(axis=2) if by_confidence else -np.arange(joint.L) - np.zeros((len(token_NL), 1))
        slot_N = np.where(token_NL == -1, rank_NL, -np.inf).argmax(axis=1)
        all_N = np.arange(len(token_NL))
        raised_NV = law_NLV[all_N, slot_N] ** alpha
        g_NV = raised_NV / raised_NV.sum(axis=1, keepdims=True)
        next_NVL = np.repeat(token_NL[:, None], joint.V, axis=1)
        next_NVL[all_N[:, None], np.arange(joint.V), slot_N[:, None]] = np.arange(joint.V)
        if exact_lookahead:
            fits_NVX = joint.fits(next_NVL.reshape(-1, joint.L)).reshape(-1, joint.V, len(joint.p_X))
            look_NV = np.log(fits_NVX @ joint.p_X**alpha) - alpha * np.log(fits_NVX @ joint.p_X)
        else:
            ahead_NVLV = joint.conditionals(next_NVL.reshape(-1, joint.L)).reshape(-1, joint.V, joint.L, joint.V)
            look_NV = np.where(next_NVL == -1, np.log((ahead_NVLV**alpha).sum(axis=3)), 0.0).sum(axis=2)
        law_NV = chain_law(g_NV, look_NV, candidates)
        token_NL = next_NVL.reshape(-1, joint.L)
        mass_N = (mass_N[:, None] * law_NV).ravel()
        log_w_N = np.repeat(log_w_N + np.log(raised_NV.sum(axis=1)), joint.V)
    place_N = joint.number(torch.from_numpy(token_NL))
    law_X, log_w_X = np.zeros_like(joint.p_X), np.zeros_like(joint.p_X)
    law_X[place_N], log_w_X[place_N] = mass_N, log_w_N
    return law_X, log_w_X


def chain_law(g_NV: np.ndarray, log_w_NV: np.ndarray, steps: int) -> np.ndarray:
    """Law of an independence chain that starts at a draw from g and proposes `steps` more."""
    accept_NVV = np.minimum(1, np.exp(log_w_NV[:, None, :] - log_w_NV[:, :, None]))
    kernel_NVV = g_NV[:, None, :] * accept_NVV
    stay_NV = 1 - kernel_NVV.sum(axis=2)
    kernel_NVV += stay_NV[:, :, None] * np.eye(g_NV.shape[1])
    law_NV = g_NV
    for _ in range(steps):
        law_NV = np.einsum("nv,nvw->nw", law_NV, kernel_NVV)
    return law_NV


def divergence(p_X: np.ndarray, q_X: np.ndarray) -> float:
    """KL(p || q) in nats."""
    return float((p_X * np.log(p_X / q_X)).sum())


def chi_square(counts_X: np.ndarray, law_X: np.ndarray) -> tuple[float, int]:
    """Statistic and degrees of freedom; answers with less than 5 expected are counted as one."""
    expected_X = law_X * counts_X.sum()
    rare_X = expected_X < 5
    observed = np.append(counts_X[~rare_X], counts_X[rare_X].sum())
    expected = np.append(expected_X[~rare_X], expected_X[rare_X].sum())
    return float(((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()), len(expected) - 1
