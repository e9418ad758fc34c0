// Hides methods, seeds, tasks and rankings in charts and tables alike. Nothing is computed anew: a row or an element is
// shown unless one of the things it belongs to is switched off, and statistics over all seeds belong to no seed.
const dimensions = ["method", "seed", "task", "ranking"];
const switches = [...document.querySelectorAll("fieldset[data-dimension] input")];
const bar = document.querySelector("form.filters");

function hiddenValues() {
  const hidden = Object.fromEntries(dimensions.map((dimension) => [dimension, new Set()]));
  for (const input of switches) {
    if (!input.checked) hidden[input.closest("fieldset").dataset.dimension].add(input.value);
  }
  return hidden;
}

function isShown(thing, hidden) {
  return dimensions.every((dimension) => !hidden[dimension].has(String(thing[dimension])));
}

function applyFilters() {
  const hidden = hiddenValues();
  for (const marked of document.querySelectorAll(dimensions.map((d) => `main [data-${d}]`).join())) {
    marked.classList.toggle("filtered", !isShown(marked.dataset, hidden));
  }
  for (const chart of charts) {
    const rows = chart.rows.filter((row) => isShown(row, hidden));
    chart.figure.classList.toggle("empty", rows.length === 0);
    redraw(chart, rows);
  }
  if (bar) bar.querySelector("[role=status]").textContent = summary();
  window.dispatchEvent(new Event("resize")); // charts that were hidden find their width
}

// "2 of 4 methods, all 3 seeds"
function summary() {
  return [...bar.querySelectorAll("fieldset")]
    .map((set) => {
      const inputs = [...set.querySelectorAll("input")];
      const shown = inputs.filter((input) => input.checked).length;
      return `${shown === inputs.length ? "all" : `${shown} of`} ${inputs.length} ${set.dataset.plural}`;
    })
    .join(", ");
}

for (const control of document.querySelectorAll("[data-needs-script]")) control.hidden = false;
for (const input of switches) input.addEventListener("change", applyFilters);
bar?.addEventListener("reset", () => setTimeout(applyFilters)); // the form is reset after the event
bar?.addEventListener("submit", (event) => event.preventDefault());
drawn.then(applyFilters);
