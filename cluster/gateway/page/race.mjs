// Runs one prompt twice, with speculation off and auto, to compare text and time.
import {Component} from "./vendor/preact.mjs";
import {chat, difference, empty, speed} from "./api.mjs";
import {requestFields, Figures, html, Legend, onEnter, OutputText, Scrolled, Settings} from "./parts.mjs";

const LANES = ["off", "auto"];
const IDLE = {off: empty(), auto: empty()};

export class Race extends Component {
  state = {prompt: "Write a function that reverses a list.", apart: false, lanes: IDLE, done: false, problem: "", running: null};

  run = async () => {
    const {prompt, apart, running} = this.state, {settings, onRefusal} = this.props;
    if (running || !prompt.trim()) return;
    const stop = new AbortController(), seed = settings.seed === "" ? Math.floor(Math.random() * 2 ** 31) : Number(settings.seed);
    const request = {...requestFields(settings, [{role: "user", content: prompt}]), seed};
    const lane = (speculation) => chat({...request, speculation}, stop.signal, (output) => this.setState(({lanes}) => ({lanes: {...lanes, [speculation]: output}})));
    this.setState({lanes: IDLE, done: false, problem: "", running: stop});
    try {
      if (apart) for (const one of LANES) await lane(one);
      else await Promise.all(LANES.map(lane));
      this.setState({done: true});
    } catch (error) {
      stop.abort();
      if (error.name !== "AbortError") onRefusal(error);
      this.setState({problem: error.name === "AbortError" ? "Stopped." : error.message});
    }
    this.setState({running: null});
  };

  onKey = (event) => {
    if (event.key === "Escape") this.state.running?.abort();
  };

  render({settings, onSettings}, {prompt, apart, lanes, done, problem, running}) {
    return html`<div class="race" onKeyDown=${this.onKey}>
      <div class="compose">
        <textarea id="prompt" rows="2" aria-label="Prompt of the race" value=${prompt} onInput=${(event) => this.setState({prompt: event.target.value})} onKeyDown=${onEnter(this.run)}></textarea>
        <div class="buttons">
          ${running ? html`<button type="button" onClick=${() => running.abort()}>Stop</button>`
            : html`<button type="button" class="first" onClick=${this.run}>Race</button>`}
        </div>
      </div>
      <${Settings} settings=${settings} onChange=${onSettings} without="speculation" />
      <label class="check"><input id="apart" type="checkbox" checked=${apart} onChange=${(event) => this.setState({apart: event.target.checked})} />
        One after the other: each has the engine to itself. Together they share its rounds.</label>
      <${Verdict} ...${{lanes, done, problem, apart}} />
      <div class="lanes">
        ${LANES.map((one) => html`<section aria-label=${`speculation ${one}`}>
          <h3><span class=${`key ${one}`}></span>speculation ${one}</h3>
          <${Scrolled} class="lane" aria-label=${`Text with speculation ${one}`} role="group"><${OutputText} output=${lanes[one]} /></${Scrolled}>
          <${Figures} output=${lanes[one]} />
        </section>`)}
      </div>
      <${Legend} />
    </div>`;
  }
}

function Verdict({lanes, done, problem, apart}) {
  if (problem) return html`<p class="mark problem" role="alert">${problem}</p>`;
  if (!done) return html`<p class="mark soft" role="status">Both get the same prompt and the same seed.</p>`;
  const found = difference(lanes.off, lanes.auto), faster = speed(lanes.off) > 0 ? speed(lanes.auto) / speed(lanes.off) : 0;
  if (found) return html`<p class="mark bad" role="status">NOT identical: ${found}.</p>`;
  return html`<p class="mark good" role="status">Identical: ${lanes.off.tokenIds.length} tokens, the same in both${faster > 0 && `; auto was ${faster.toFixed(2)} times as fast${apart ? "" : ", beside off"}`}.</p>`;
}
