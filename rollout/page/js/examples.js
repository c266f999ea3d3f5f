// Prompts that the built-in model was trained for.

export const PROMPTS = [
  { name: "Sudoku", prompt: "0310200404001043:", slots: 20 },
  { name: "Countdown", prompt: "030,100,093=023:", slots: 20 },
  { name: "Arithmetic", prompt: "37+485=", slots: 8 },
];

export const INFILL = "0310200404001043:43⟦4⟧213434⟦4⟧43";

export function renderExamples(container, choose) {
  container.replaceChildren(
    ...PROMPTS.map((example) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = example.name;
      button.addEventListener("click", () => choose(example));
      return button;
    }),
  );
}
