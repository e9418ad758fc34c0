// Draws every chart. Bundled together with Vega: the page asks the network for nothing.
const page = JSON.parse(document.getElementById("report-data").textContent);

// All charts of the page: where each is, the rows it draws, and its view once it is drawn.
const charts = Object.entries(page).flatMap(([part, { charts, datasets }]) =>
  Object.entries(charts).map(([key, { spec, rows, columns }]) => {
    const place = document.getElementById(`chart-${part}-${key}`);
    return { spec, columns, place, figure: place.closest("figure"), name: rows, rows: datasets[rows], view: null };
  }),
);

// Some charts have a band for each method, and as many bands as there are methods to be seen.
function heightOf({ spec }, rows) {
  return spec.usermeta ? spec.usermeta.band * new Set(rows.map((row) => row.method)).size : spec.height;
}

async function draw(chart) {
  const options = { renderer: "svg", actions: false, tooltip: { theme: "report" } };
  const spec = { ...chart.spec, height: heightOf(chart, chart.rows), datasets: { [chart.name]: chart.rows } };
  chart.view = (await vegaEmbed(chart.place, spec, options)).view;
}

// Hands over the rows to be seen: those of statistics are never computed here.
function redraw(chart, rows) {
  chart.view?.data(chart.name, rows).height(heightOf(chart, rows)).run();
}

const drawn = Promise.all(charts.map(draw));
