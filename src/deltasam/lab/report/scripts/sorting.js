// A click on a column's head sorts its table by it, a second one turns the order round.
function valueOf(row, column) {
  const cell = row.cells[column];
  return (cell.dataset.value ?? cell.textContent).trim();
}

// The number a text begins with, as in "0.91 ± 0.02" or "1.97x"; none for "–" and words.
function numberOf(text) {
  return /^[+-]?[\d.]/.test(text) ? Number.parseFloat(text) : Number.NaN;
}

function compareTexts(one, other) {
  const [a, b] = [numberOf(one), numberOf(other)];
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  return one.localeCompare(other, "en", { numeric: true });
}

function sortBy(table, head) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const column = head.cellIndex;
  const missing = (row) => ["–", ""].includes(valueOf(row, column)); // last in either direction
  const rows = [...table.tBodies[0].rows].sort(
    (a, b) => missing(a) - missing(b) || direction * compareTexts(valueOf(a, column), valueOf(b, column)),
  );
  table.tBodies[0].append(...rows);
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

function makeSortable(table) {
  table.classList.add("sortable");
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortBy(table, head));
  }
}

for (const table of document.querySelectorAll("main table")) if (table.tHead) makeSortable(table);
