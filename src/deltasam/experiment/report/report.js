// Bundled together with Vega: the page asks the network for nothing.
const page = JSON.parse(document.getElementById("report-data").textContent);
const options = { renderer: "svg", actions: false, tooltip: { theme: "report" } };

// A chart is drawn with the rows it names, which are those of its part of the page.
for (const [part, { charts, datasets }] of Object.entries(page)) {
  for (const [key, spec] of Object.entries(charts)) {
    vegaEmbed(document.getElementById(`chart-${part}-${key}`), { ...spec, datasets }, options);
  }
}
