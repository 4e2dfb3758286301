"use strict";
// Read-outs: the pointer, or the arrow keys, pick a place on an axis; every chart with that axis shows its values there.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  function threeDigits(value) {
    const size = Math.abs(value);
    if (size === 0 || (size >= 1000 && size < 1e6)) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
    if (size >= 1e-3 && size < 1000) return value.toPrecision(3);
    return value.toExponential(2);
  }

  function count(value) {
    for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
      if (Math.abs(value) >= 0.9995 * size) return `${threeDigits(value / size)} ${unit}`;
    }
    return Number.isInteger(value) ? String(value) : threeDigits(value);
  }

  const forms = { loss: (value) => value.toFixed(4), count, three_digits: threeDigits };
  const integer = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });

  // The first index whose x is not below the given one.
  function search(xs, x) {
    let low = 0;
    let high = xs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function interpolate(points, x) {
    const index = search(points.map((point) => point[0]), x);
    if (index === 0) return points[0][1];
    if (index === points.length) return points[index - 1][1];
    const [[x0, y0], [x1, y1]] = [points[index - 1], points[index]];
    return y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
  }

  function element(parent, tag, name) {
    const made = document.createElement(tag);
    made.className = name;
    made.hidden = true;
    parent.append(made);
    return made;
  }

  class Chart {
    constructor(figure) {
      this.spec = data[figure.dataset.chart];
      this.plot = figure.querySelector(".plot");
      this.cursor = element(this.plot, "div", "cursor");
      this.where = element(this.plot, "span", "where");
      this.curves = [...figure.querySelectorAll("output")].map((output) => {
        const spot = element(this.plot, "div", "spot");
        spot.style.setProperty("--c", output.parentElement.querySelector("i").style.getPropertyValue("--c"));
        return { ...this.spec.curves[output.dataset.curve], output, spot, last: output.textContent };
      });
      this.x = this.spec.x[1];
    }

    top(y) {
      const [low, high] = this.spec.y;
      const place = this.spec.log ? Math.log(y / low) / Math.log(high / low) : (y - low) / (high - low);
      return 1 - Math.min(Math.max(place, 0), 1);
    }

    left(x) {
      const [low, high] = this.spec.x;
      return (x - low) / (high - low);
    }

    // The point nearest to x; of those that share its pixel column, the nearest to the pointer's height if there is one.
    nearest(curve, x, height) {
      const { x: xs, y: ys } = curve;
      const near = (this.spec.x[1] - this.spec.x[0]) / 1000;
      let best = -1;
      let least = Infinity;
      const middle = search(xs, x);
      for (let index = Math.max(0, middle - 4); index < Math.min(xs.length, middle + 4); index++) {
        if (ys[index] === null) continue;
        const apart = Math.abs(xs[index] - x);
        const distance = apart < near && height !== undefined ? Math.abs(this.top(ys[index]) - height) : 1 + apart;
        if (distance < least) [best, least] = [index, distance];
      }
      return best;
    }

    show(x, height) {
      const left = this.left(x);
      if (left < 0 || left > 1) return this.hide();
      this.x = x;
      for (const curve of this.curves) {
        const index = this.nearest(curve, x, height);
        curve.spot.hidden = index < 0;
        curve.output.textContent = index < 0 ? "none" : forms[this.spec.form](curve.y[index]);
        if (index < 0) continue;
        curve.spot.style.left = `${100 * this.left(curve.x[index])}%`;
        curve.spot.style.top = `${100 * this.top(curve.y[index])}%`;
      }
      const tokens = this.spec.tokens.length ? `, ${count(interpolate(this.spec.tokens, x))} tokens` : "";
      this.where.textContent = this.spec.unit === "step" ? `step ${integer(x)}${tokens}` : `${count(x)} tokens`;
      this.cursor.hidden = this.where.hidden = false;
      this.cursor.style.left = `${100 * left}%`;
      const room = this.plot.clientWidth;
      const half = this.where.offsetWidth / 2;
      this.where.style.left = `${Math.min(Math.max(left * room, half - 40), room + 10 - half) - half}px`;
    }

    hide() {
      this.cursor.hidden = this.where.hidden = true;
      for (const { output, spot, last } of this.curves) {
        spot.hidden = true;
        output.textContent = last;
      }
    }
  }

  const charts = [...document.querySelectorAll("figure[data-chart]")].map((figure) => new Chart(figure));
  const likewise = (chart) => charts.filter((other) => other.spec.unit === chart.spec.unit);
  const whole = (chart, x) => (chart.spec.unit === "step" ? Math.round(x) : x);

  for (const chart of charts) {
    const [low, high] = chart.spec.x;
    const point = (event) => {
      const box = chart.plot.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      const x = whole(chart, low + share * (high - low));
      const height = (event.clientY - box.top) / box.height;
      for (const other of likewise(chart)) other.show(x, other === chart ? height : undefined);
    };
    const leave = () => likewise(chart).forEach((other) => other.hide());
    chart.plot.addEventListener("pointermove", point);
    chart.plot.addEventListener("pointerdown", point);
    chart.plot.addEventListener("pointerleave", leave);
    chart.plot.addEventListener("blur", leave);
    chart.plot.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (direction === undefined) return;
      event.preventDefault();
      const x = Math.min(Math.max(chart.x + (direction * (high - low)) / 100, low), high);
      for (const other of likewise(chart)) other.show(whole(chart, x));
    });
  }
})();
