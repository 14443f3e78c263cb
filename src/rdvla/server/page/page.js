"use strict";
// The page's state and wiring. Everything shown comes from one websocket; every wish goes back through it.

const KEPT = 240;
const $ = (id) => document.getElementById(id);
const HELP = {
  client: "Every request is answered with the depth it asks for.",
  depth: "Every decision takes exactly this many iterations.",
  adaptive: "Iterate until the answer has settled, at most this many times.",
  budget: "Iterate as the request asks, but no longer than this.",
};
let decisions = [];
let arrivals = [];
let controls = null;
let socket = null;
let retry = 500;
let stale = true;
let complaint = 0;

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/live`);
  socket.onopen = () => {
    retry = 500;
    decisions = [];
    pill($("connection"), "connected", "good");
  };
  socket.onmessage = (event) => receive(JSON.parse(event.data));
  socket.onclose = () => {
    pill($("connection"), "reconnecting", "warm");
    setTimeout(connect, retry);
    retry = Math.min(retry * 2, 5000);
  };
}

function receive(message) {
  if (message.hello) greet(message.hello);
  if (message.controls) adopt(message.controls);
  if (message.images) showImages(message.images);
  if (message.scene) showScene(message.scene);
  if (message.decisions) decide(message.decisions);
  if (message.error) complain(message.error);
}

// Says what was refused, for long enough to be read.
function complain(words) {
  $("error").textContent = words;
  $("error").hidden = false;
  clearTimeout(complaint);
  complaint = setTimeout(() => { $("error").hidden = true; }, 8000);
}

function greet(hello) {
  $("policy").textContent = hello.name;
  $("depth").max = Math.min(32, hello.max_depth);
  $("simulator").hidden = !hello.simulator;
  if (decisions.length === 0) $("instruction").textContent = `Waiting for the first request at ${socket.url.replace("/live", "")}`;
  $("instruction").classList.toggle("idle", decisions.length === 0);
}

function decide(fresh) {
  decisions = decisions.concat(fresh).slice(-KEPT);
  const now = performance.now();
  arrivals = arrivals.concat(fresh.map(() => now)).filter((time) => now - time < 3000);
  stale = true;
}

function showImages(images) {
  for (const [camera, source] of Object.entries(images)) {
    const id = `camera-${camera}`;
    if (!$(id)) {
      const figure = document.createElement("figure"), image = document.createElement("img");
      const caption = document.createElement("figcaption");
      image.id = id;
      image.alt = `camera ${camera}`;
      caption.textContent = camera;
      figure.append(image, caption);
      $("cameras").append(figure);
    }
    $(id).src = source;
  }
}

function showScene(scene) {
  if (Object.keys(scene).length === 0) return;
  $("scene").hidden = false;
  $("task").textContent = `${scene.suite} · task ${scene.task_id} · ${scene.start}`;
  $("steps").textContent = `step ${scene.step} of ${scene.max_steps}`;
  $("tally").textContent = `episode ${scene.episode}, ${scene.solved} of ${scene.finished} solved`;
  showStages(scene);
  $("progress").value = scene.step / scene.max_steps;
  pill($("status"), scene.status, { solved: "good", failed: "bad", paused: "warm" }[scene.status] || "");
}

// A chain of instructions: those solved, the one at hand, those to come.
function showStages(scene) {
  const list = $("stages"), ended = { solved: "done", failed: "failed" };
  list.hidden = scene.stages.length < 2;
  if (list.hidden) return;
  if (scene.finished > 0) $("tally").textContent += `, ${(scene.stages_solved / scene.finished).toFixed(2)} in a row`;
  list.replaceChildren(...scene.stages.map((words, number) => {
    const item = document.createElement("li");
    item.textContent = words;
    item.className = number < scene.stage ? "done" : number > scene.stage ? "" : ended[scene.status] || "now";
    return item;
  }));
}

function pill(element, text, kind) {
  element.textContent = text;
  element.className = `pill ${kind}`;
}

function adopt(fresh) {
  controls = fresh;
  document.querySelector(`input[name=mode][value=${fresh.mode}]`).checked = true;
  $("mode-help").textContent = HELP[fresh.mode];
  $("depth-name").textContent = fresh.mode === "adaptive" ? "At most" : "Iterations";
  $("depth-row").classList.toggle("off", !["depth", "adaptive"].includes(fresh.mode));
  $("rule-row").classList.toggle("off", fresh.mode !== "adaptive");
  $("budget-row").classList.toggle("off", fresh.mode !== "budget");
  if (document.activeElement !== $("depth")) $("depth").value = fresh.depth;
  if (document.activeElement !== $("budget")) $("budget").value = toSlider(fresh.budget_ms);
  if (document.activeElement !== $("words")) $("words").value = fresh.instruction;
  if (fresh.rule !== "fixed") $("rule").value = fresh.rule;
  $("depth-value").textContent = fresh.depth;
  $("budget-value").textContent = `${Math.round(fresh.budget_ms)} ms`;
  $("pause").textContent = fresh.paused ? "Go on" : "Pause";
}

// The budget slider is logarithmic: 0..100 is 2..2000 ms.
const toSlider = (ms) => Math.round((Math.log(ms / 2) / Math.log(1000)) * 100);
const fromSlider = (position) => Math.round(2 * 1000 ** (position / 100));

function wish(change) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(change));
}

function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function draw() {
  requestAnimationFrame(draw);
  const now = performance.now();
  arrivals = arrivals.filter((time) => now - time < 3000);
  $("rate").textContent = (arrivals.length / 3).toFixed(1);
  if (!stale || decisions.length === 0) return;
  stale = false;
  const newest = decisions[decisions.length - 1];
  $("count").textContent = newest.number.toLocaleString("en");
  $("iterations").textContent = newest.num_recurrences;
  $("rule-used").textContent = (newest.rule || "by the policy's own rule") + (newest.budget_ms
    ? `, within ${Math.round(newest.budget_ms)} ms (took ${Math.round(100 * newest.budget_used)} %)` : "")
    + Object.entries(newest.signals).map(([name, value]) => ` · ${name} ${value === null ? "?" : +value.toPrecision(3)}`
      + (name === "alarm" && value > 1 ? " (raised)" : "")).join("");
  $("instruction").textContent = newest.instruction;
  $("instruction").classList.remove("idle");
  $("horizon").textContent = `${newest.n_action_steps} of ${newest.actions.length} steps suggested before deciding again; `
    + "numbers are the first step's";
  $("latency").textContent = newest.total_ms < 10 ? newest.total_ms.toFixed(1) : Math.round(newest.total_ms);
  const totals = decisions.map((decision) => decision.total_ms);
  $("percentiles").textContent = `; half within ${percentile(totals, 0.5).toFixed(0)}, 95 % within ${percentile(totals, 0.95).toFixed(0)} ms`;
  const most = Math.max(...decisions.map((decision) => decision.num_recurrences));
  drawBars($("depths"), decisions, {
    lower: (decision) => decision.num_recurrences, total: () => 0, top: Math.max(4, 4 * Math.ceil(most / 4)), unit: "",
  });
  drawBars($("latencies"), decisions, {
    lower: (decision) => decision.policy_ms, total: (decision) => decision.total_ms,
    top: niceCeiling(percentile(totals, 0.98)), unit: "",
  });
  $("convergence-note").textContent = newest.convergence.length ? "how far each iteration still moves the answer"
    : "a fixed depth measures none; choose Adaptive to see it";
  drawCurves($("curves"), decisions);
  drawChunk($("chunk"), decisions);
}

document.querySelectorAll("input[name=mode]").forEach((input) => {
  input.addEventListener("change", () => wish({ mode: input.value }));
});
$("depth").addEventListener("input", () => {
  const mode = controls && controls.mode === "adaptive" ? "adaptive" : "depth";
  $("depth-value").textContent = $("depth").value;
  wish({ mode, depth: Number($("depth").value) });
});
$("budget").addEventListener("input", () => wish({ mode: "budget", budget_ms: fromSlider(Number($("budget").value)) }));
$("rule").addEventListener("change", () => wish({ mode: "adaptive", rule: $("rule").value }));
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  wish({ instruction: $("words").value });
});
$("pause").addEventListener("click", () => wish({ paused: !controls.paused }));
$("again").addEventListener("click", () => wish({ episode: controls.episode + 1, paused: false }));
window.addEventListener("resize", () => { stale = true; });
connect();
draw();
