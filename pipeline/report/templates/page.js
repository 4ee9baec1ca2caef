// What the page does beyond showing itself: tables that sort, filter and search, the map, and the
// threshold's slider. Without it all is there but the map and rows beyond the first of each table.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const find = (selector, within = document) => within.querySelector(selector);
  const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Texts of the corpus reach the page only as text nodes, never as HTML.
  function make(tag, options = {}, ...children) {
    const { className, dataset, ...attributes } = options;
    const element = document.createElement(tag);
    if (className) element.className = className;
    Object.assign(element.dataset, dataset);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  const isolate = (text) => make("bdi", {}, text);
  const formatShare = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
  const formatNumber = (value) => Number(value.toPrecision(4)).toString();
  const formatCount = (value) => value.toLocaleString("en-US");

  // Whole numbers as Python packed them: unsigned, little-endian, base64.
  function unpack({ bits, data: text }) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return bits === 8 ? bytes : new (bits === 16 ? Uint16Array : Uint32Array)(bytes.buffer);
  }

  // The points that are chosen on the map: tables show their rows alone. Null is all.
  let chosen = null;
  const tables = [];
  let map = null;
  function choose(points) {
    chosen = points && points.size ? points : null;
    for (const table of tables) table.refresh();
    for (const bar of findAll(".chosen-points")) {
      bar.hidden = !chosen;
      if (chosen) find("span", bar).textContent =
        `Only what is chosen on the map: ${formatCount(chosen.size)} ${chosen.size === 1 ? "text" : "texts"}`;
    }
    if (map) map.draw();
  }
  for (const button of findAll(".chosen-points button")) button.addEventListener("click", () => choose(null));

  // ---- Tables -------------------------------------------------------------------------------
  // A table of the data: rows are arrays, and each heading tells which field it shows, and how.
  const PAGE_ROWS = innerWidth > 640 ? 25 : 10; // a row is a card on a narrow screen
  const formats = {
    text: (row, field) => [isolate(data.texts[row[field]] ?? "")],
    name: (row, field) => [isolate(row[field] ?? "")],
    kind: (row, field) => [make("span", { className: "kind" }, isolate(row[field]))],
    score: (row, field) => [formatShare(row[field])],
    plain: (row, field) => [String(row[field] ?? "")],
    task: (row, field) => [isolate(data.tasks[row[field]].name)],
    near: (row, field) => {
      const [text, label, cosine] = row.slice(field, field + 3);
      if (cosine === null) return [];
      const aside = make("span", { className: "aside" }, isolate(label ?? "no label"), ` · ${formatShare(cosine)}`);
      return text < 0 ? [aside] : [isolate(data.texts[text]), aside];
    },
  };

  class Table {
    constructor(table) {
      this.table = table;
      this.name = table.dataset.table ?? table.dataset.sorts;
      this.body = table.tBodies[0];
      this.columns = findAll("thead th", table).map((heading, index) => ({
        heading, index, field: Number(heading.dataset.field), format: heading.dataset.format, title: heading.textContent.trim(),
      }));
      this.rows = this.listRows();
      this.page = 0;
      this.order = null;
      this.tools = find(`[data-tools="${this.name}"]`);
      this.pager = find(`[data-pager="${this.name}"]`);
      this.addSorting();
      this.addFilters();
      this.addPager();
      this.refresh();
    }

    listRows() { return data[this.name].map((row) => ({ row, node: null })); }
    get pointField() { return this.table.dataset.point ? Number(this.table.dataset.point) : -1; }

    // What a row is sorted by: the number or the text that a column shows.
    value({ row }, column) {
      if (column.format === "text") return data.texts[row[column.field]] ?? "";
      if (column.format === "near") return row[column.field + 2];
      if (column.format === "task") return data.tasks[row[column.field]].name;
      return row[column.field];
    }
    words(entry) {
      entry.words ??= this.columns.map((column) => String(
        column.format === "near" ? (data.texts[entry.row[column.field]] ?? "") : this.value(entry, column) ?? "")).join("\n").toLowerCase();
      return entry.words;
    }
    node(entry) {
      entry.node ??= this.makeRow(entry.row);
      return entry.node;
    }
    makeRow(row) {
      const cells = this.columns.map(({ field, format, title, heading }) => {
        const cell = make("td", { className: heading.dataset.cell, dataset: { label: title } }, ...formats[format](row, field));
        return cell;
      });
      const point = row[this.pointField];
      if (point >= 0 && map) {
        const button = make("button", { type: "button", className: "link", "aria-label": "show it on the map" }, "map");
        button.addEventListener("click", () => map.show(point));
        cells[cells.length - 1].append(" ", button);
      }
      return make("tr", {}, ...cells);
    }

    addSorting() {
      const select = this.tools && find("[data-sort]", this.tools);
      for (const column of this.columns) {
        if (!column.title) continue;
        const button = make("button", { type: "button" }, ...column.heading.childNodes);
        column.heading.replaceChildren(button);
        button.addEventListener("click", () => {
          const again = this.order && this.order.column === column;
          this.sort(column, again ? -this.order.sign : this.isNumeric(column) ? -1 : 1);
        });
        if (select) select.append(make("option", { value: column.index }, column.title));
      }
      if (select) select.addEventListener("change", () => {
        const column = this.columns[select.value];
        if (column) this.sort(column, this.isNumeric(column) ? -1 : 1);
        else { this.order = null; this.mark(); this.refresh(); }
      });
    }
    isNumeric(column) { return this.rows.some((entry) => typeof this.value(entry, column) === "number"); }
    sort(column, sign) {
      this.order = { column, sign };
      this.mark();
      this.refresh();
    }
    mark() {
      for (const { heading } of this.columns) heading.removeAttribute("aria-sort");
      if (this.order) this.order.column.heading.setAttribute("aria-sort", this.order.sign > 0 ? "ascending" : "descending");
    }

    addFilters() {
      this.filters = {};
      if (!this.tools) return;
      this.tools.hidden = false;
      for (const control of findAll("[data-filter]", this.tools)) {
        this.filters[control.dataset.filter] = control;
        control.addEventListener(control.type === "search" ? "input" : "change", () => {
          if (control.dataset.filter === "task") this.fillFilters();
          this.refresh();
        });
      }
      this.fillFilters();
    }
    // The classes and the kinds of the chosen task, as choices.
    fillFilters() {
      const { task, class: classes, kind } = this.filters;
      if (task) this.table.classList.toggle("one-task", task.value !== "");
      const ofTask = this.rows.filter(({ row }) => !task || task.value === "" || row[0] === Number(task.value));
      if (classes) {
        const names = task.value === "" ? [] : data.tasks[task.value].classes;
        classes.replaceChildren(make("option", { value: "" }, "all classes"),
          ...names.map((name, index) => make("option", { value: index }, name)));
        classes.closest("label").hidden = !names.length;
      }
      if (kind) {
        const counts = new Map();
        for (const { row } of ofTask) counts.set(row[6], (counts.get(row[6]) ?? 0) + 1);
        const sorted = [...counts].sort((a, b) => b[1] - a[1]);
        kind.replaceChildren(make("option", { value: "" }, "all kinds"), make("option", { value: "wrong" }, "wrong"),
          ...sorted.map(([name, count]) => make("option", { value: `=${name}` }, `${name} (${count})`)));
      }
    }
    matches(entry) {
      const { row } = entry;
      const { task, class: classes, kind, part, reason, same, search } = this.filters;
      if (chosen && this.pointField >= 0 && !chosen.has(row[this.pointField])) return false;
      if (task && task.value !== "" && row[0] !== Number(task.value)) return false;
      if (classes && classes.value !== "" && !row[11].includes(Number(classes.value))) return false;
      if (kind && kind.value !== "" && (kind.value === "wrong" ? row[6] === "doubtful" : `=${row[6]}` !== kind.value)) return false;
      if (part && part.value !== "" && row[3] !== part.value) return false;
      if (reason && reason.value !== "" && row[7] !== reason.value) return false;
      if (same && same.value !== "" && row[5] !== same.value) return false;
      if (search && search.value) {
        const words = this.words(entry);
        return search.value.toLowerCase().split(/\s+/).every((word) => words.includes(word));
      }
      return true;
    }

    addPager() {
      if (!this.pager) return;
      this.pager.hidden = false;
      this.status = find("[role=status]", this.pager);
      [this.back, this.forth] = findAll("button", this.pager);
      this.back.addEventListener("click", () => this.turn(-1));
      this.forth.addEventListener("click", () => this.turn(1));
    }
    turn(by) {
      this.page += by;
      this.refresh(true);
      this.table.scrollIntoView({ block: "nearest" });
    }
    get pageRows() { return PAGE_ROWS; }
    refresh(keepPage = false) {
      if (!keepPage) this.page = 0;
      let entries = this.rows.filter((entry) => this.matches(entry));
      if (this.order) {
        const { column, sign } = this.order;
        const compare = (a, b) => {
          const [x, y] = [this.value(a, column), this.value(b, column)];
          if (x === y) return 0;
          if (x === null || x === undefined) return 1; // what is not known comes last both ways
          if (y === null || y === undefined) return -1;
          return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
        };
        entries = [...entries].sort(compare);
      }
      const start = this.page ? this.page * this.pageRows : 0; // pages of a static table have no end
      const shown = entries.slice(start, start + this.pageRows);
      this.body.replaceChildren(...shown.map((entry) => this.node(entry)));
      this.table.dataset.found = entries.length;
      if (!this.pager) return;
      this.status.textContent = entries.length
        ? `${formatCount(start + 1)} to ${formatCount(start + shown.length)} of ${formatCount(entries.length)}` : "no rows";
      this.back.disabled = this.page === 0;
      this.forth.disabled = start + shown.length >= entries.length;
    }
  }

  // A table that stands in the page as a whole: it sorts and searches its own rows.
  class StaticTable extends Table {
    listRows() {
      return [...this.body.rows].map((node) => ({
        node, cells: [...node.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim()),
      }));
    }
    get pointField() { return -1; }
    get pageRows() { return Infinity; }
    value({ cells }, column) {
      const text = cells[column.index] ?? "";
      if (text === "–" || text === "") return null;
      const number = Number(text.replaceAll(",", "").replace(" %", "").replace("−", "-"));
      return Number.isNaN(number) ? text : number;
    }
    isNumeric(column) { return this.rows.every((entry) => typeof (this.value(entry, column) ?? 0) === "number"); }
    words(entry) { return entry.cells.join("\n").toLowerCase(); }
    matches(entry) {
      const { search } = this.filters;
      return !search || search.value.toLowerCase().split(/\s+/).every((word) => this.words(entry).includes(word));
    }
  }

  // ---- Thresholds ---------------------------------------------------------------------------
  // The frame is that of charts.py.
  const FRAME = { left: 54, right: 350, top: 10, bottom: 228 };
  function addThreshold(box) {
    const curves = data.thresholds[box.dataset.task].map((curve) => ({ ...curve, tp: unpack(curve.tp), fp: unpack(curve.fp) }));
    const slider = find("input[type=range]", box);
    const select = find("select", box);
    let curve = curves[0];
    const at = (index) => (index === curve.chosen ? curve.threshold : index / 200);
    function score(index) {
      const [tp, fp] = [curve.tp[index], curve.fp[index]];
      const fn = curve.support - tp;
      return {
        tp, fp, fn, tn: curve.rows - curve.support - fp,
        precision: tp + fp ? tp / (tp + fp) : 0, recall: curve.support ? tp / curve.support : 0,
        f1: 2 * tp + fp + fn ? (2 * tp) / (2 * tp + fp + fn) : 0,
        cost: curve.cost ? curve.cost[index] : null,
      };
    }
    const across = (threshold) => FRAME.left + threshold * (FRAME.right - FRAME.left);
    function redraw() { // the lines of another tag
      for (const name of ["precision", "recall", "f1"]) {
        const steps = Array.from(curve.tp, (_, index) =>
          `${across(at(index)).toFixed(1)} ${(FRAME.bottom - score(index)[name] * (FRAME.bottom - FRAME.top)).toFixed(1)}`);
        find(`.curve-${name}`, box).setAttribute("d", `M${steps.join("L")}`);
      }
      const mark = find(".chosen", box);
      for (const end of ["x1", "x2"]) mark.setAttribute(end, across(Math.min(curve.threshold, 1)));
      for (const place of findAll("[data-class]", box)) place.replaceChildren(isolate(curve.name));
    }
    function update() {
      const index = Number(slider.value);
      const found = score(index);
      slider.setAttribute("aria-valuetext", `threshold ${formatShare(at(index))}`);
      for (const place of findAll("[data-show]", box)) {
        const name = place.dataset.show;
        if (name === "threshold") place.textContent = formatShare(at(index));
        else if (name === "cost") place.textContent = found.cost === null ? "–" : formatNumber(found.cost);
        else place.textContent = ["tp", "fp", "fn", "tn"].includes(name) ? formatCount(found[name]) : formatShare(found[name]);
      }
      for (const [name, total] of [["tp", curve.support], ["fn", curve.support], ["fp", curve.rows - curve.support], ["tn", curve.rows - curve.support]])
        find(`[data-show="${name}"]`, box).closest("td").style.setProperty("--share", total ? found[name] / total : 0);
      const line = find(".now", box);
      for (const end of ["x1", "x2"]) line.setAttribute(end, across(Math.min(at(index), 1)));
    }
    slider.addEventListener("input", update);
    find("[data-reset]", box).addEventListener("click", () => { slider.value = curve.chosen; update(); });
    if (select) select.addEventListener("change", () => {
      curve = curves[select.value];
      slider.value = curve.chosen;
      redraw();
      update();
    });
    findAll("[hidden]", box).forEach((element) => { element.hidden = false; });
    slider.value = curve.chosen;
    update();
  }

  // ---- The map ------------------------------------------------------------------------------
  const NONE = 0xffff; // a number on the map that is not known
  const SERIES = 7; // colours of names; the eighth is that of all rarer ones
  class CorpusMap {
    constructor(board) {
      const { map: packed } = data;
      this.board = board;
      this.canvas = find("canvas", board);
      this.tip = find(".tip", board);
      this.keys = find("[data-keys]");
      this.count = packed.row.data ? unpack(packed.row).length : 0;
      this.rows = unpack(packed.row);
      this.x = Float32Array.from(unpack(packed.x), (value) => value / 1000 - 1);
      this.y = Float32Array.from(unpack(packed.y), (value) => 1 - value / 1000);
      this.part = unpack(packed.part);
      this.cluster = unpack(packed.cluster);
      this.tasks = packed.tasks.map((task) => ({
        ...task, label: unpack(task.label), predicted: unpack(task.predicted), suspects: new Set(task.suspects),
      }));
      this.hovered = -1;
      this.lit = null; // the group that stands out
      this.area = null; // the corners of the rectangle that is being drawn
      this.pointers = new Map();
      this.by = find("select[data-by]");
      this.of = find("[data-of]");
      this.pick = find("[data-pick]");
      for (const control of [this.by, this.of]) control.addEventListener("change", () => this.recolour());
      this.pick.addEventListener("change", () => { this.lit = this.pick.value === "" ? null : Number(this.pick.value); this.recolour(true); });
      this.listen();
      this.fit();
      this.recolour();
      new ResizeObserver(() => this.draw()).observe(this.canvas);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    }

    // What a point's label or answer says, in words.
    say(task, value, ofLabel) {
      if (task.names) return value < task.names.length ? task.names[value] : ofLabel ? "no label" : "–";
      return value === NONE ? "no label" : formatNumber(this.number(task, value));
    }
    number(task, value) { return task.low + (value / 65534) * (task.high - task.low); }

    // The group of each point, and the name and the colour of each group.
    groups() {
      const by = this.by.value;
      const task = this.tasks[this.of.value];
      if (by === "part") return this.nameGroups(this.part, data.map.parts, "other");
      if (by === "cluster") return this.nameGroups(this.cluster, data.map.clusters, "none");
      if (by === "suspect") {
        return { names: ["as labelled", "label in doubt"], colours: ["faint", "s1"],
          of: Uint8Array.from({ length: this.count }, (_, point) => Number(task.suspects.has(point))) };
      }
      if (by === "error" && task.names) {
        const missing = task.names.length;
        return { names: ["right", "wrong", "no label"], colours: ["s0", "s1", "faint"],
          of: Uint8Array.from(task.label, (label, point) => (label >= missing ? 2 : Number(label !== task.predicted[point]))) };
      }
      if (by === "error") { // numbers: by how far the answer is off
        const offs = Float64Array.from(task.label, (label, point) =>
          (label === NONE ? NaN : Math.abs(this.number(task, label) - this.number(task, task.predicted[point]))));
        return this.rangeGroups(offs, "off by ");
      }
      const values = by === "label" ? task.label : task.predicted;
      if (!task.names) return this.rangeGroups(Float64Array.from(values, (value) => (value === NONE ? NaN : this.number(task, value))), "");
      if (task.ordered) return this.orderGroups(values, task.names.slice(0, -1));
      return this.nameGroups(values, task.names, "no label");
    }
    nameGroups(values, names, missing) {
      const counts = new Array(names.length + 1).fill(0);
      for (const value of values) counts[Math.min(value, names.length)] += 1;
      const ranks = names.map((_, index) => index).sort((a, b) => counts[b] - counts[a]);
      const colours = new Array(names.length + 1).fill("s7");
      // Few names have their colour in their own order, so that it stays the same in every view.
      (names.length <= SERIES ? names.map((_, index) => index) : ranks).slice(0, SERIES).forEach((index, rank) => { colours[index] = `s${rank}`; });
      colours[names.length] = "faint";
      return { names: [...names, missing], colours, of: Uint16Array.from(values, (value) => Math.min(value, names.length)) };
    }
    orderGroups(values, names) {
      const step = names.length > 1 ? 6 / (names.length - 1) : 0;
      return { names: [...names, "no label"], colours: [...names.map((_, index) => `r${Math.round(index * step)}`), "faint"], ordered: true,
        of: Uint16Array.from(values, (value) => Math.min(value, names.length)) };
    }
    rangeGroups(values, before) {
      const known = values.filter((value) => !Number.isNaN(value)).sort();
      const bounds = [...new Set([1, 2, 3, 4, 5, 6].map((part) => known[Math.floor((part * known.length) / 7)]))].filter((bound) => bound !== undefined);
      const ends = [known[0], ...bounds, known[known.length - 1]];
      const names = [...bounds, null].map((_, index) => `${before}${formatNumber(ends[index] ?? 0)} to ${formatNumber(ends[index + 1] ?? 0)}`);
      return { names: [...names, "no label"], colours: [...names.map((_, index) => `r${Math.round((index * 6) / Math.max(names.length - 1, 1))}`), "faint"], ordered: true,
        of: Uint8Array.from(values, (value) => (Number.isNaN(value) ? names.length : bounds.filter((bound) => bound <= value).length)) };
    }

    recolour(keepLit = false) {
      if (!keepLit) this.lit = null;
      const { names, colours, of, ordered } = this.groups();
      this.group = of;
      this.colours = colours;
      this.of.closest("label").hidden = ["part", "cluster"].includes(this.by.value) || this.tasks.length < 2;
      const counts = new Array(names.length).fill(0);
      for (const group of of) counts[group] += 1;
      let shown = names.map((_, index) => index).filter((index) => counts[index]);
      if (!ordered && names.length > 4) shown.sort((a, b) => counts[b] - counts[a]);
      const rest = shown.slice(12);
      this.pick.closest("label").hidden = !rest.length;
      if (!keepLit) this.pick.replaceChildren(make("option", { value: "" }, `all ${shown.length}`),
        ...[...shown].sort((a, b) => names[a].localeCompare(names[b])).map((index) => make("option", { value: index }, `${names[index]} (${counts[index]})`)));
      this.keys.replaceChildren(...shown.slice(0, 12).map((index) => {
        const button = make("button", { type: "button", "aria-pressed": String(this.lit === index) },
          make("i", { className: colours[index] }), isolate(names[index]), make("span", {}, formatCount(counts[index])));
        button.addEventListener("click", () => {
          this.lit = this.lit === index ? null : index;
          this.pick.value = this.lit === null ? "" : String(index);
          this.recolour(true);
        });
        return make("li", {}, button);
      }));
      this.draw();
    }

    // Where points stand on the canvas, in pixels of the page.
    fit() {
      this.zoom = 1;
      this.center = [0, 0];
      this.draw();
    }
    get unit() {
      const { clientWidth, clientHeight } = this.canvas;
      // The two directions are stretched to the board: distances along them do not compare anyway.
      return [(clientWidth / 2 - 14) * this.zoom, (clientHeight / 2 - 14) * this.zoom * this.stretch];
    }
    get stretch() {
      if (!this.spread) {
        let spread = 1e-3;
        for (const y of this.y) spread = Math.max(spread, Math.abs(y));
        this.spread = spread;
      }
      return 1 / this.spread;
    }
    locate(point) {
      const [ux, uy] = this.unit;
      return [(this.x[point] - this.center[0]) * ux + this.canvas.clientWidth / 2, (this.y[point] - this.center[1]) * uy + this.canvas.clientHeight / 2];
    }
    nearest(px, py, reach) {
      let [best, least] = [-1, reach * reach];
      for (let point = 0; point < this.count; point += 1) {
        if (this.lit !== null && this.group[point] !== this.lit) continue;
        const [x, y] = this.locate(point);
        const distance = (x - px) ** 2 + (y - py) ** 2;
        if (distance < least) [best, least] = [point, distance];
      }
      return best;
    }
    move(dx, dy) {
      const [ux, uy] = this.unit;
      this.center = [this.center[0] - dx / ux, this.center[1] - dy / uy];
      this.draw();
    }
    zoomBy(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
      const before = this.unit;
      this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 200);
      const after = this.unit;
      const from = [px - this.canvas.clientWidth / 2, py - this.canvas.clientHeight / 2];
      this.center = this.center.map((value, axis) => value + from[axis] / before[axis] - from[axis] / after[axis]);
      this.draw();
    }
    show(point) {
      this.zoom = Math.max(this.zoom, 4);
      this.center = [this.x[point], this.y[point]];
      this.board.scrollIntoView({ block: "center" });
      this.hover(point);
      this.canvas.focus({ preventScroll: true });
    }

    draw() {
      if (this.pending) return;
      this.pending = requestAnimationFrame(() => { this.pending = 0; this.paint(); });
    }
    colour(name) {
      this.probe ??= this.board.appendChild(make("i", { hidden: "" }));
      this.probe.className = name;
      return getComputedStyle(this.probe).color;
    }
    paint() {
      const { canvas } = this;
      const scale = window.devicePixelRatio || 1;
      const [width, height] = [canvas.clientWidth, canvas.clientHeight];
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      const pen = canvas.getContext("2d");
      pen.scale(scale, scale);
      const radius = Math.min(Math.max((this.count > 6000 ? 1.5 : 2.2) * Math.sqrt(Math.sqrt(this.zoom)), 1.3), 6);
      const layers = new Map(); // colour → points, so that each colour is set once
      for (let point = 0; point < this.count; point += 1) {
        const name = this.lit !== null && this.group[point] !== this.lit ? "faint" : this.colours[this.group[point]];
        if (!layers.has(name)) layers.set(name, []);
        layers.get(name).push(point);
      }
      const order = [...layers].sort((a, b) => (b[0] === "faint") - (a[0] === "faint") || b[1].length - a[1].length);
      for (const [name, points] of order) {
        pen.fillStyle = this.colour(name);
        pen.globalAlpha = name === "faint" ? 0.55 : 0.8;
        pen.beginPath();
        for (const point of points) {
          const [x, y] = this.locate(point);
          if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
          pen.moveTo(x + radius, y);
          pen.arc(x, y, radius, 0, 7);
        }
        pen.fill();
      }
      pen.globalAlpha = 1;
      pen.strokeStyle = this.colour("ink");
      pen.lineWidth = 1.5;
      for (const point of chosen ?? []) this.ring(pen, point, radius + 2);
      if (this.hovered >= 0) this.ring(pen, this.hovered, radius + 4);
      if (this.area) {
        pen.setLineDash([5, 4]);
        const [x, y, right, bottom] = this.area;
        pen.strokeRect(x, y, right - x, bottom - y);
      }
      // What is drawn, for tests, which cannot read a canvas.
      Object.assign(canvas.dataset, { drawn: this.count, zoom: this.zoom.toFixed(2), by: this.by.value, ink: this.colour("ink"), chosen: chosen ? chosen.size : "" });
    }
    ring(pen, point, radius) {
      const [x, y] = this.locate(point);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.stroke();
    }

    hover(point) {
      this.hovered = point;
      this.tip.hidden = point < 0;
      if (point >= 0) {
        const facts = [["row", formatCount(this.rows[point])], ["part", data.map.parts[this.part[point]] ?? "other"]];
        this.tasks.slice(0, 6).forEach((task, index) => {
          const [label, answer] = [this.say(task, task.label[point], true), this.say(task, task.predicted[point], false)];
          facts.push([data.tasks[index].name, label === answer ? label : `${label} → ${answer}`]);
        });
        this.tip.replaceChildren(...(data.map.text ? [isolate(data.map.text[point])] : []),
          make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, isolate(name)), make("dd", {}, isolate(value))])));
        this.placeTip(...this.locate(point));
      }
      this.draw();
    }
    placeTip(x, y) {
      const { tip, board } = this;
      const left = Math.min(Math.max(x + 16, 8), board.clientWidth - tip.offsetWidth - 8);
      const above = y - tip.offsetHeight - 16;
      const top = above > 8 ? above : Math.min(y + 16, board.clientHeight - tip.offsetHeight - 8);
      tip.style.transform = `translate(${Math.round(Math.max(left, 8))}px, ${Math.round(Math.max(top, 8))}px)`;
    }

    listen() {
      const { canvas } = this;
      const selects = find("[data-area]", this.board);
      const place = (event) => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top];
      };
      selects.addEventListener("click", () => {
        const on = selects.getAttribute("aria-pressed") !== "true";
        selects.setAttribute("aria-pressed", String(on));
        canvas.classList.toggle("selects", on);
        canvas.style.touchAction = on ? "none" : "";
      });
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        const [x, y] = place(event);
        this.pointers.set(event.pointerId, [x, y]);
        this.moved = false;
        this.area = event.shiftKey || selects.getAttribute("aria-pressed") === "true" ? [x, y, x, y] : null;
      });
      canvas.addEventListener("pointermove", (event) => {
        const [x, y] = place(event);
        const before = this.pointers.get(event.pointerId);
        if (!before) { this.hover(this.nearest(x, y, 12)); return; }
        const [dx, dy] = [x - before[0], y - before[1]];
        if (!this.moved && Math.hypot(dx, dy) < 4) return;
        this.moved = true;
        this.hover(-1);
        if (this.area) { this.area[2] = x; this.area[3] = y; this.draw(); return; }
        const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
        if (others.length) { // two fingers: the distance between them is the zoom
          const [[, other]] = others;
          const ratio = Math.hypot(x - other[0], y - other[1]) / Math.max(Math.hypot(before[0] - other[0], before[1] - other[1]), 1);
          this.zoomBy(ratio, (x + other[0]) / 2, (y + other[1]) / 2);
        } else this.move(dx, dy);
        this.pointers.set(event.pointerId, [x, y]);
      });
      const release = (event) => {
        const [x, y] = place(event);
        const held = this.pointers.delete(event.pointerId);
        if (this.area && this.moved) this.chooseArea(this.area);
        else if (held && !this.moved && event.type === "pointerup") {
          const point = this.nearest(x, y, event.pointerType === "touch" ? 24 : 12);
          this.hover(point);
          choose(point < 0 ? null : new Set([point]));
        }
        this.area = null;
        this.draw();
      };
      canvas.addEventListener("pointerup", release);
      canvas.addEventListener("pointercancel", (event) => { this.pointers.delete(event.pointerId); this.area = null; });
      canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && document.activeElement !== canvas) this.hover(-1); });
      // The wheel scrolls the page, unless the map has been clicked or Ctrl is held.
      canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && document.activeElement !== canvas) return;
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY / 300), ...place(event));
      }, { passive: false });
      const keys = {
        ArrowLeft: () => this.move(60, 0), ArrowRight: () => this.move(-60, 0), ArrowUp: () => this.move(0, 60), ArrowDown: () => this.move(0, -60),
        "+": () => this.zoomBy(1.5), "=": () => this.zoomBy(1.5), "-": () => this.zoomBy(1 / 1.5), 0: () => this.fit(),
      };
      canvas.addEventListener("keydown", (event) => {
        const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2];
        if (event.key === "Escape") { choose(null); this.hover(-1); } else if (event.key === "Enter") {
          if (this.hovered >= 0) choose(new Set([this.hovered]));
        } else if (keys[event.key]) {
          keys[event.key]();
          this.hover(this.nearest(...middle, 200)); // the text in the middle is read out
        } else return;
        event.preventDefault();
      });
      for (const [name, action] of Object.entries({ in: () => this.zoomBy(1.6), out: () => this.zoomBy(1 / 1.6), all: () => this.fit() }))
        find(`[data-zoom=${name}]`, this.board).addEventListener("click", action);
    }
    chooseArea([x1, y1, x2, y2]) {
      const [left, right, top, bottom] = [Math.min(x1, x2), Math.max(x1, x2), Math.min(y1, y2), Math.max(y1, y2)];
      const inside = new Set();
      for (let point = 0; point < this.count; point += 1) {
        if (this.lit !== null && this.group[point] !== this.lit) continue;
        const [x, y] = this.locate(point);
        if (x >= left && x <= right && y >= top && y <= bottom) inside.add(point);
      }
      choose(inside);
    }
  }

  // ---- The page -----------------------------------------------------------------------------
  const board = find(".board");
  if (board) {
    find(".map").hidden = false;
    map = new CorpusMap(board);
  }
  for (const table of findAll("table[data-table]")) tables.push(new Table(table));
  for (const table of findAll("table[data-sorts]")) new StaticTable(table);
  for (const box of findAll(".threshold[data-task]")) addThreshold(box);

  const theme = find(".theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    if (map) map.draw();
  });

  // The section that is being read stands out in the bar.
  const links = new Map(findAll(".contents a").map((link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const id of links.keys()) reading.observe(document.getElementById(id));
  root.dataset.ready = "true";
})();
