// On paper nothing is filtered or folded; what was on the screen comes back afterwards.
const folded = new Set();

function unfold() {
  for (const details of document.querySelectorAll("main details:not(.data):not([open])")) {
    folded.add(details);
    details.open = true;
  }
  for (const chart of charts) redraw(chart, chart.rows);
}

function fold() {
  for (const details of folded) details.open = false;
  folded.clear();
  applyFilters();
}

window.matchMedia("print").addEventListener("change", ({ matches }) => (matches ? unfold() : fold()));
