// A click on a column's head sorts its table, a second one the other way.
document.querySelectorAll("th").forEach((head) => head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = head.dataset.order = head.dataset.order === "down" ? "up" : "down";
  const compare = (a, b) => isNaN(a) || isNaN(b) ? String(a).localeCompare(b) : a - b;
  [...body.rows].sort((a, b) => compare(value(a), value(b)) * (order === "up" ? 1 : -1)).forEach((row) => body.append(row));
});
