"use strict";
// Each plot of the report, where its numbers stand.
addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("[data-plot]")) plot(box, JSON.parse(box.dataset.plot));
});
