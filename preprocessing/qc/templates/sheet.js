// Search, filters, order and enlarging; without it every bag is shown.
const form = document.querySelector(".tools"), grid = document.querySelector(".cards");
const cards = [...grid.children], chosen = name => form.elements[name]?.value ?? "";
const orders = {
  place: (a, b) => a.dataset.place - b.dataset.place,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true}),
  tissue: (a, b) => (a.dataset.tissue || 2) - (b.dataset.tissue || 2),
  size: (a, b) => a.dataset.size - b.dataset.size,
};
function fits(card) {
  const data = card.dataset, warnings = JSON.parse(data.warnings), asked = chosen("warning");
  return data.name.toLowerCase().includes(chosen("name").trim().toLowerCase())
    && ["state", "split", "label"].every(key => !chosen(key) || chosen(key) === data[key])
    && (!asked || (asked === "any" ? warnings.length : asked === "none" ? !warnings.length : warnings.includes(asked)));
}
function update() {
  cards.sort(orders[chosen("sort")]);
  grid.append(...cards);
  const shown = cards.filter(card => !(card.hidden = !fits(card)));
  form.querySelector("output").value = shown.length === cards.length ? "" : shown.length
    ? `${shown.length} of ${cards.length}` : "none of the bags pictured here; report.qc_bags sets how many are";
}
form.hidden = false;
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
grid.addEventListener("click", event => {
  if (!event.target.matches("img")) return;
  const card = event.target.closest(".card");
  card.classList.toggle("large");
  card.scrollIntoView({block: "nearest"});
});
// A link to a bag that a filter hides shows all bags again.
function reveal() {
  const card = document.getElementById(location.hash.slice(1));
  if (card?.hidden) { form.reset(); update(); card.scrollIntoView(); }
}
addEventListener("hashchange", reveal);
update();
reveal();
