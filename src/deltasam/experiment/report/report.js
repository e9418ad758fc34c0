// Bundled together with Vega: the page asks the network for nothing.
const page = JSON.parse(document.getElementById("report-data").textContent);
const options = { renderer: "svg", actions: false, tooltip: { theme: "report" } };

// A chart is drawn with the rows it names.
for (const [key, spec] of Object.entries(page.charts)) {
  vegaEmbed(document.getElementById(`chart-${key}`), { ...spec, datasets: page.datasets }, options);
}
