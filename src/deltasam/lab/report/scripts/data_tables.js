// The table behind each chart: made of the rows the chart draws, when it is first opened.
function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text; // never markup: names and texts come from data
  return made;
}

function headRow(titles) {
  const row = document.createElement("tr");
  for (const title of titles) {
    const head = element("th", title);
    head.scope = "col";
    row.append(head);
  }
  return row;
}

function dataRow(row, fields) {
  const made = document.createElement("tr");
  for (const field of fields) {
    const empty = field === "seed" ? "all" : "–";
    made.append(element("td", row[field] ?? empty));
  }
  for (const dimension of dimensions) {
    if (row[dimension] !== undefined) made.dataset[dimension] = row[dimension];
  }
  return made;
}

function tableOf({ rows, columns }) {
  const table = document.createElement("table");
  const fields = Object.keys(columns);
  const known = rows.filter((row) => fields.some((field) => !(field in { method: 0, seed: 0, step: 0 }) && row[field] != null));
  table.createTHead().append(headRow(Object.values(columns)));
  table.createTBody().append(...known.map((row) => dataRow(row, fields)));
  makeSortable(table);
  return table;
}

for (const chart of charts) {
  const details = chart.figure.querySelector("details.data");
  const fill = () => {
    details.querySelector(".scroll").append(tableOf(chart));
    applyFilters();
  };
  details.addEventListener("toggle", fill, { once: true });
}
