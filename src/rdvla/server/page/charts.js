"use strict";
// Four drawings on canvases. Each takes the canvas and plain data and draws everything anew.

const INK = getComputedStyle(document.documentElement);
const COLOUR = Object.fromEntries(
  ["text", "quiet", "line", "think", "wait", "warm"].map((name) => [name, INK.getPropertyValue("--" + name).trim()]),
);

function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  return { pen, width, height };
}

function label(pen, text, x, y, align = "left", colour = COLOUR.quiet) {
  pen.fillStyle = colour;
  pen.textAlign = align;
  pen.fillText(text, x, y);
}

function rule(pen, x0, y, x1, dash = []) {
  pen.strokeStyle = COLOUR.line;
  pen.lineWidth = 1;
  pen.setLineDash(dash);
  pen.beginPath();
  pen.moveTo(x0, Math.round(y) + 0.5);
  pen.lineTo(x1, Math.round(y) + 0.5);
  pen.stroke();
  pen.setLineDash([]);
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

// One bar per decision: `lower` in full colour, the rest up to `total` in grey.
function drawBars(canvas, decisions, { lower, total, top, unit }) {
  const { pen, width, height } = prepare(canvas);
  const left = 34, bottom = height - 6, head = 8;
  const y = (value) => bottom - (Math.min(value, top) / top) * (bottom - head);
  for (const mark of [0, top / 2, top]) {
    rule(pen, left, y(mark), width);
    label(pen, `${+mark.toFixed(1)}${unit}`, left - 6, y(mark), "right");
  }
  const slots = Math.max(20, Math.floor((width - left) / 8));
  const shown = decisions.slice(-slots);
  const pitch = (width - left) / slots;
  shown.forEach((decision, index) => {
    const x = width - (shown.length - index) * pitch;
    const newest = index === shown.length - 1;
    pen.globalAlpha = newest ? 1 : 0.62;
    pen.fillStyle = COLOUR.wait;
    pen.fillRect(x + 1, y(total(decision)), pitch - 2, bottom - y(total(decision)));
    pen.fillStyle = newest ? COLOUR.text : COLOUR.think;
    pen.fillRect(x + 1, y(lower(decision)), pitch - 2, bottom - y(lower(decision)));
  });
  pen.globalAlpha = 1;
}

// The stopping rule's measure by iteration, newest curve in front, log scale.
// While nothing is measured, the last curves stay, dimmed.
function drawCurves(canvas, decisions) {
  const { pen, width, height } = prepare(canvas);
  const shown = decisions.filter((decision) => decision.convergence.length > 0).slice(-14);
  if (shown.length === 0) return;
  const isOld = decisions[decisions.length - 1].convergence.length === 0;
  const shownValue = (value) => Math.max(value, 1e-12);
  const newest = shown[shown.length - 1];
  const values = shown.flatMap((decision) => decision.convergence.filter((v) => v !== null).map(shownValue));
  const threshold = newest.limit === null ? null : shownValue(newest.limit);
  const all = threshold === null ? values : [...values, threshold];
  const low = Math.floor(Math.log10(Math.min(...all))), high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...all))));
  const longest = Math.max(8, ...shown.map((decision) => decision.num_recurrences));
  const left = 40, right = width - 10, head = 10, bottom = height - 20;
  const x = (iteration) => left + ((iteration - 1) / Math.max(1, longest - 1)) * (right - left);
  const y = (value) => bottom - ((Math.log10(value) - low) / (high - low)) * (bottom - head);
  const stride = Math.ceil((high - low) / 5);
  for (let power = low; power <= high; power += stride) {
    rule(pen, left, y(10 ** power), right);
    label(pen, power === 0 ? "1" : `1e${power}`, left - 6, y(10 ** power), "right");
  }
  const every = longest > 16 ? 4 : longest > 10 ? 2 : 1;
  for (let iteration = every; iteration <= longest; iteration += every) {
    label(pen, String(iteration), x(iteration), height - 7, "center");
  }
  if (threshold !== null) {
    pen.strokeStyle = COLOUR.warm;
    pen.setLineDash([5, 4]);
    pen.beginPath();
    pen.moveTo(left, y(threshold));
    pen.lineTo(right, y(threshold));
    pen.stroke();
    pen.setLineDash([]);
    label(pen, "stop below", left + 6, y(threshold) - 8, "left", COLOUR.warm);
  }
  shown.forEach((decision, index) => {
    const isNewest = decision === newest && !isOld;
    const first = decision.num_recurrences - decision.convergence.length + 1;
    pen.globalAlpha = isNewest ? 1 : 0.1 + (0.35 * index) / shown.length;
    pen.strokeStyle = pen.fillStyle = COLOUR.think;
    pen.lineWidth = isNewest ? 2.5 : 1.2;
    pen.beginPath();
    decision.convergence.forEach((value, step) => {
      if (value !== null) pen.lineTo(x(first + step), y(shownValue(value)));
    });
    pen.stroke();
    const last = decision.convergence[decision.convergence.length - 1];
    if (isNewest && last !== null) {
      pen.beginPath();
      pen.arc(x(decision.num_recurrences), y(shownValue(last)), 4, 0, 7);
      pen.fill();
    }
  });
  pen.globalAlpha = 1;
}

const ARM = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"];

// One row per dimension, one column per planned step; bars up and down from zero; unexecuted steps dimmed. The arm's
// scale is its largest action of late, the gripper's is 1.
function drawChunk(canvas, decisions) {
  const { pen, width, height } = prepare(canvas);
  const { actions, n_action_steps: executed } = decisions[decisions.length - 1];
  const dims = actions[0].length, hasGripper = dims === ARM.length;
  const names = hasGripper ? ARM : actions[0].map((_, index) => `a${index}`);
  const left = 104, foot = 18, row = (height - foot) / dims, column = (width - left) / actions.length;
  const isGripper = (dim) => hasGripper && dim === dims - 1;
  const full = Math.max(0.05, ...decisions.slice(-60).flatMap(
    (decision) => decision.actions.flatMap((action) => action.filter((_, dim) => !isGripper(dim)).map(Math.abs)),
  ));
  names.forEach((name, dim) => {
    const middle = row * (dim + 0.5);
    rule(pen, left, middle, width);
    label(pen, name, 44, middle, "right");
    label(pen, actions[0][dim].toFixed(2).replace("-", "−"), left - 12, middle, "right", COLOUR.text);
    actions.forEach((action, step) => {
      const extent = (action[dim] / (isGripper(dim) ? 1 : full)) * row * 0.44;
      pen.globalAlpha = step < executed ? 0.95 : 0.3;
      pen.fillStyle = isGripper(dim) ? COLOUR.warm : COLOUR.think;
      const size = Math.max(1.5, Math.min(Math.abs(extent), row * 0.44));
      pen.fillRect(left + column * step + column * 0.14, extent > 0 ? middle - size : middle, column * 0.72, size);
    });
    pen.globalAlpha = 1;
  });
  const every = Math.ceil(actions.length / 16);
  actions.forEach((_, step) => {
    if (step % every === 0) label(pen, String(step + 1), left + column * (step + 0.5), height - 7, "center");
  });
  if (executed < actions.length) {
    pen.strokeStyle = COLOUR.quiet;
    pen.setLineDash([2, 3]);
    pen.beginPath();
    pen.moveTo(left + column * executed, 2);
    pen.lineTo(left + column * executed, height - foot);
    pen.stroke();
    pen.setLineDash([]);
  }
}
