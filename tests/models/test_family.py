"""A wrong config.json gets an error that names the field; the facts of a family come from its files."""

import json
import shutil
import subprocess
import sys

import pytest

import models
from models.family import FAMILIES, family_of


def test_unknown_model_type_names_the_nearest_known_one():
    with pytest.raises(models.ModelError, match=r"model_type = 'lada' .*Did you mean 'llada'\?"):
        family_of({"model_type": "lada"})


def test_missing_model_type_is_named():
    with pytest.raises(models.ModelError, match="model_type is missing; known: llada, Dream"):
        family_of({})


def test_every_model_type_belongs_to_one_family():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llada", "alibi", True),
        ("llada", "include_bias", True),
        ("dream", "use_sliding_window", True),
        ("llada2", "score_function", "softmax"),
    ],
)
def test_field_that_the_stock_class_does_not_compute_is_refused(folder_of, family, field, value):
    config = models.read_config(folder_of(family)) | {field: value}
    with pytest.raises(models.ModelError, match=f"{field} = {value!r} is not supported for {family}; allowed: "):
        family_of(config)


def test_missing_size_is_named(folder_of):
    config = models.read_config(folder_of("dream"))
    del config["num_hidden_layers"]
    with pytest.raises(models.ModelError, match="num_hidden_layers is missing"):
        models.create(config, seed=0)


def test_mask_token_comes_from_the_caller_then_the_config(load_family):
    assert load_family("llada").mask_token_id == 31
    assert load_family("llada", mask_token_id=29).mask_token_id == 29


def test_missing_mask_token_is_named_with_both_ways_to_give_it(folder_of):
    config = models.read_config(folder_of("open_dllm"))
    del config["mask_token_id"]
    with pytest.raises(models.ModelError, match=r"mask_token_id is missing.*load\(\.\.\., mask_token_id=\.\.\.\)"):
        models.create(config, seed=0)


def test_mask_token_of_the_released_checkpoints_is_not_assumed_for_a_smaller_vocabulary(folder_of):
    config = models.read_config(folder_of("sdar_moe"))
    del config["mask_token_id"]
    with pytest.raises(models.ModelError, match="mask_token_id = 151669 is outside the vocabulary"):
        models.create(config, seed=0)


def test_mask_token_given_by_the_caller_is_saved(folder_of, tmp_path):
    shutil.copytree(folder_of("open_dllm"), tmp_path / "in")
    config = models.read_config(tmp_path / "in")
    del config["mask_token_id"]
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    models.save(models.load(tmp_path / "in", mask_token_id=28), tmp_path / "out")
    assert models.load(tmp_path / "out").mask_token_id == 28


def test_end_tokens_are_those_of_both_config_files_each_once(folder_of, tmp_path):
    shutil.copytree(folder_of("sdar"), tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [28, 30]}')
    denoiser = models.load(tmp_path / "model")
    assert denoiser.eos_token_id == 30
    assert denoiser.stop_token_ids == (30, 28)


def test_padding_token_ends_an_answer_where_no_end_token_is_named(folder_of):
    config = models.read_config(folder_of("llada2"))
    del config["eos_token_id"]
    assert models.create(config, seed=0).stop_token_ids == (30,)


def test_block_length_comes_from_the_config_or_the_family(folder_of):
    config = models.read_config(folder_of("sdar"))
    assert models.create(config, seed=0).block_length == 4
    assert models.create(config | {"block_size": 8}, seed=0).block_length == 8
    assert models.create(models.read_config(folder_of("llada2")), seed=0).block_length == 32
    assert models.create(models.read_config(folder_of("dream")), seed=0).block_length is None


def test_settings_and_config_reading_need_no_torch(folder_of):
    code = (
        "import sys, models.config, models\n"
        f"assert models.read_config({str(folder_of('llada'))!r})['model_type'] == 'llada'\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
