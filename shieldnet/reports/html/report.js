"use strict";
/* The explorer: one choice of a shield moves panels, images and charts. Without it, all is shown. */
for (const section of document.querySelectorAll("section[data-report]")) {
  const every = section.dataset.every;
  const views = [];
  const chosen = () => section.querySelector("input[type=radio]:checked").value;

  const show = () => {
    const name = chosen();
    for (const part of section.querySelectorAll("[data-subject]")) {
      part.hidden = name !== every && part.dataset.subject !== name;
    }
    for (const view of views) {
      view.signal("subject", name).runAsync();
    }
    section.querySelector("output").textContent =
      name === every ? "Showing every shield." : `Showing ${name}.`;
  };

  for (const figure of section.querySelectorAll("figure[data-chart]")) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const options = { actions: false, ast: true, logLevel: 1, renderer: "svg" };
    window.vegaEmbed(figure.querySelector(".chart"), spec, options).then(({ view }) => {
      views.push(view);
      view.signal("subject", chosen()).runAsync();
    });
  }

  section.querySelector("fieldset").hidden = false;
  section.addEventListener("change", show);
  show();
}
/* Paper cannot be clicked. */
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) {
    part.open = true;
  }
});
