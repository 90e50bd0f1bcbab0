// The values of a chart's curves at the pointer, worked back from the places of their points.
"use strict";
for (const svg of document.querySelectorAll("svg[data-scale]")) {
  const [left, right, first, last, bottom, top_, low, high] = svg.dataset.scale.split(" ").map(Number);
  const curves = [...svg.querySelectorAll("polyline")].map((line) =>
    line.getAttribute("points").split(" ").map((point) => point.split(",").map(Number)));
  const step = (x) => first + ((x - left) / (right - left)) * (last - first);
  const value = (y) => low + ((bottom - y) / (bottom - top_)) * (high - low);
  const shown = (number) => String(Number(number.toPrecision(4)));
  const figure = svg.closest("figure"), said = figure.querySelector("output");
  const ends = [...figure.querySelectorAll(".key b")], kept = ends.map((end) => end.textContent);
  const rule = svg.querySelector(".rule");
  const leave = () => {
    said.textContent = "";
    rule.setAttribute("visibility", "hidden");
    ends.forEach((end, at) => { end.textContent = kept[at]; });
  };
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const near = curves.map((points) =>
      points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best)));
    const at = near.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best))[0];
    rule.setAttribute("x1", at);
    rule.setAttribute("x2", at);
    rule.setAttribute("visibility", "visible");
    said.textContent = `step ${Math.round(step(at))}` + (ends.length ? "" : `: ${shown(value(near[0][1]))}`);
    ends.forEach((end, curve) => { end.textContent = shown(value(near[curve][1])); });
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}
