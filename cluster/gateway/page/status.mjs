// The cluster's figures, and plots of the last two minutes, from the gateway's status stream.
import {Component} from "./vendor/preact.mjs";
import uPlot from "./vendor/uPlot.esm.js";
import {call, events} from "./api.mjs";
import {html} from "./parts.mjs";

const WINDOW_S = 120, RETRY_MS = 2000, PLOT_HEIGHT = 130, POSITIONS = 4;  // positions listed in text; the plot shows all

// The figures of one status: counts are summed over replicas, rates averaged over replicas that have them.
export function sample(status, time) {
  const engines = status.replicas.map((replica) => replica.engine), speculations = engines.map((engine) => engine.speculation);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => (values.length ? sum(values) / values.length : null);
  const at = (name) => {
    const lists = speculations.map((one) => one[name]), deepest = Math.max(0, ...lists.map((list) => list.length));
    return Array.from({length: deepest}, (_, place) => sum(lists.map((list) => list[place] ?? 0)));
  };
  return {
    time,
    running: sum(engines.map((one) => one.running)),
    waiting: sum(engines.map((one) => one.waiting)),
    generated: sum(engines.map((one) => one.generated_tokens)),
    usage: Math.max(0, ...engines.map((one) => one.kv_cache_usage)),
    depth: mean(speculations.map((one) => one.draft_depth)),
    speedup: mean(speculations.map((one) => one.speedup).filter((value) => value > 0)),
    drafted: at("drafted_per_position"),
    accepted: at("accepted_per_position"),
    length: mean(speculations.map((one) => one.mean_accepted_length).filter((value) => value > 0)),
  };
}

// Tokens per second between two samples; null if a counted replica was removed.
export function pace(before, now) {
  const gained = now.generated - before.generated, seconds = now.time - before.time;
  return gained >= 0 && seconds > 0 ? gained / seconds : null;
}

// [j]: accepted share of rounds that verified at least j + 1 drafts: recent rounds if there are any, else all.
export function acceptance(samples) {
  const first = samples[0], last = samples.at(-1);
  if (!last) return {shares: [], recent: false};
  const recent = last.drafted.map((count, place) => count - (first.drafted[place] ?? 0)), ran = recent.length > 0 && recent[0] > 0 && recent.every((count) => count >= 0);
  const drafted = ran ? recent : last.drafted, accepted = ran ? last.accepted.map((count, place) => count - (first.accepted[place] ?? 0)) : last.accepted;
  const deep = drafted.filter((count) => count > 0).length;  // counts fall with the position
  return {shares: drafted.slice(0, deep).map((count, place) => (accepted[place] ?? 0) / count), recent: ran};
}

export class Status extends Component {
  state = {status: null, samples: [], problem: "", missing: false};

  componentDidMount() {
    this.watch();
  }
  componentDidUpdate(before) {
    if (before.entry !== this.props.entry) this.watch();  // another token
  }

  async watch() {
    this.stop?.abort();
    const stop = (this.stop = new AbortController());
    while (!stop.signal.aborted) {
      try {
        for await (const status of events(await call("status?watch=true", {signal: stop.signal}))) this.show(status);
      } catch (error) {
        if (stop.signal.aborted) return;
        const refused = error.status === 401 || error.status === 403;
        this.setState({problem: error.status === 403 ? "This token may chat, but not look at the cluster: that needs the role admin." : error.message});
        if (refused) return;
      }
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }

  show(status) {
    const time = performance.now() / 1000, now = sample(status, time);
    const samples = [...this.state.samples.filter((one) => one.time > time - WINDOW_S), now];
    now.pace = samples.length > 1 ? pace(samples.at(-2), now) : null;
    this.setState({status, samples, problem: ""});
  }

  render(_, {status, samples, problem}) {
    if (!status) return html`<h2>Cluster</h2><p class="soft" role="status">${problem || "Waiting for the status."}</p>`;
    const last = samples.at(-1), ready = status.replicas.filter((one) => one.state === "ready").length;
    const {shares, recent} = acceptance(samples), times = samples.map((one) => one.time - last.time), pick = (name) => samples.map((one) => one[name]);
    return html`<h2>Cluster</h2>
      ${(problem || status.problem) && html`<p class="problem" role="alert">${problem || status.problem}</p>`}
      <dl>${figures(status, last, ready).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      ${notes(status).map((note) => html`<p class="small soft">${note}</p>`)}
      <${Plot} title="Draft depth" summary=${shown(last.depth, 1)} data=${[times, pick("depth")]} series=${[["--auto"]]} />
      <${Plot} title="Speed-up over no speculation" summary=${last.speedup === null ? "not known" : `${shown(last.speedup, 2)}x`} data=${[times, pick("speedup")]} series=${[["--accepted"]]} />
      <${Plot} title=${`Acceptance by position, ${recent ? "of late" : "since the start"}`} summary=${shares.slice(0, POSITIONS).map((share) => shown(share, 2)).join(" ") || "no draft yet"}
        data=${[shares.map((_, place) => place + 1), shares]} series=${[["--accepted", "bars"]]} most=${1} />
      <${Plot} title="Load: sequences" summary=${`${last.running} running, ${last.waiting} waiting`} data=${[times, pick("running"), pick("waiting")]} series=${[["--auto", "running"], ["--rejected", "waiting"]]} whole />
      <${Plot} title="Tokens a second" summary=${shown(last.pace, 0)} data=${[times, pick("pace")]} series=${[["--text"]]} />`;
  }
}

const shown = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function figures(status, last, ready) {
  const {setting} = status.replicas[0]?.engine.speculation ?? {};
  return [
    ["Replicas ready", `${ready} of ${Math.max(status.desired_replicas, status.replicas.length)}`],
    ["Speculation", setting || "–"],
    ["Speed-up", last.speedup === null ? "–" : `${shown(last.speedup, 2)}x`],
    ["Draft depth", shown(last.depth, 1)],
    ["Accepted length", shown(last.length, 2)],
    ["Running", last.running],
    ["Waiting", last.waiting],
    ["Tokens a second", shown(last.pace, 0)],
    ["KV cache", `${(100 * last.usage).toFixed(0)} %`],
  ];
}

function notes(status) {
  return status.replicas.flatMap((replica) => {
    const {disabled_rounds: rounds, disabled_reason: reason, alarms} = replica.engine.speculation;
    const raised = Object.keys(alarms).filter((name) => alarms[name]).map((name) => `${replica.name}: sign of a broken drafter: ${name}`);
    return rounds ? [`${replica.name}: drafting is disabled for ${rounds} rounds: ${reason}`, ...raised] : raised;
  });
}

const DARK = matchMedia("(prefers-color-scheme: dark)");

// A uPlot plot with its latest values as text. `series`: a colour each, and "bars" or a name.
class Plot extends Component {
  componentDidMount() {
    this.draw();
    this.seen = new ResizeObserver(() => this.plot.setSize({width: this.room.clientWidth, height: PLOT_HEIGHT}));
    this.seen.observe(this.room);
    DARK.addEventListener("change", this.draw);
  }
  componentDidUpdate() {
    this.plot.setData(this.props.data);
  }
  componentWillUnmount() {
    this.seen.disconnect();
    DARK.removeEventListener("change", this.draw);
    this.plot.destroy();
  }

  draw = () => {
    this.plot?.destroy();
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
    const {series, most, data, whole} = this.props, bars = series[0][1] === "bars", axis = {stroke: colour("--soft"), grid: {stroke: colour("--rule"), width: 1}, ticks: {show: false}, font: "12px system-ui"};
    const options = {
      width: this.room.clientWidth, height: PLOT_HEIGHT, legend: {show: false}, cursor: {show: false}, padding: [8, 8, 0, 0],
      scales: {x: {time: false, range: bars ? (_, low, high) => [0.4, Math.max(4, high) + 0.6] : () => [-WINDOW_S, 0]}, y: {range: (_, low, high) => [0, most ?? Math.max(1, 1.1 * (high ?? 1))]}},
      axes: [{...axis, size: 24, space: 12, incrs: bars ? [1] : [30], values: (_, splits) => splits.map((one) => (bars ? one : `${one} s`))}, {...axis, size: 44, space: 30, ...(whole && {incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500]})}],
      series: [{}, ...series.map(([name, kind]) => ({stroke: colour(name), width: 2, spanGaps: false, points: {show: false}, ...(kind === "bars" && {fill: colour(name), paths: uPlot.paths.bars({size: [0.6, 60]})})}))],
    };
    this.plot = new uPlot(options, data, this.room);
  };

  render({title, summary, series}) {
    const named = series.filter(([, name]) => name && name !== "bars");
    return html`<figure role="img" aria-label=${`${title}: ${summary}`}>
      <figcaption>${title} ${named.length ? named.map(([colour, name]) => html`<span class="pair"><span class=${`key ${colour.slice(2)}`}></span>${name}</span>`) : html`<strong>${summary}</strong>`}</figcaption>
      <div class="plot" ref=${(node) => (this.room = node)}></div>
    </figure>`;
  }
}
