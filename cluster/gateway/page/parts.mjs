// Components that several views share: an output with tinted accepted drafts, its figures, and a request's settings.
import {h, Component} from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";
import {speed, text} from "./api.mjs";

export const html = htm.bind(h);

const tinted = (pieces) => pieces.map((piece) => html`<span class=${piece.drafted ? "draft" : ""}>${piece.text}</span>`);

export function OutputText({output}) {
  const thoughts = output.pieces.filter((piece) => piece.reasoning), rest = output.pieces.filter((piece) => !piece.reasoning);
  return html`
    ${thoughts.length > 0 && html`<details open=${rest.length === 0}><summary>Reasoning</summary><div class="text soft">${tinted(thoughts)}</div></details>`}
    <div class="text">${tinted(rest)}</div>`;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export function Figures({output}) {
  const tokens = output.tokenIds.length;
  if (!tokens) return null;
  const parts = [count(tokens, "token"), `${speed(output).toFixed(0)} tokens/s`, `first after ${(1000 * output.firstAt).toFixed(0)} ms`, `${(tokens / Math.max(1, output.rounds)).toFixed(2)} tokens a round`];
  if (output.drafted) parts.push(`${output.accepted} of ${output.drafted} drafts accepted`);
  if (output.finish === "length") parts.push("ended at Most tokens");
  return html`<p class="figures">${parts.join(" · ")}</p>`;
}

export const Legend = () => html`<p class="soft small"><span class="draft">Tinted</span>: accepted drafts, which cost no round of their own.</p>`;

export const DEPTHS = ["auto", "off", "1", "2", "3", "4", "6", "8", "12", "16"];
export const DEFAULTS = {speculation: "auto", temperature: "0.8", most: "256", seed: ""};

// The fields of a request body, except speculation.
export function requestFields(settings, messages) {
  const request = {messages, temperature: Number(settings.temperature)};
  if (settings.most) request.max_tokens = Number(settings.most);
  if (settings.seed !== "") request.seed = Number(settings.seed);
  return request;
}

export const depth = (speculation) => (/^\d+$/.test(speculation) ? Number(speculation) : speculation);

// `without`: "speculation" in the view that runs both modes.
export function Settings({settings, onChange, without}) {
  const number = (name, label, rest) => html`
    <label>${label}<input type="number" value=${settings[name]} ...${rest} onInput=${(event) => onChange({...settings, [name]: event.target.value})} /></label>`;
  return html`<div class="settings">
    ${without !== "speculation" && html`<label>Speculation
      <select id="speculation" value=${settings.speculation} onChange=${(event) => onChange({...settings, speculation: event.target.value})}>
        ${DEPTHS.map((one) => html`<option value=${one}>${/^\d+$/.test(one) ? count(Number(one), "draft") : one}</option>`)}
      </select></label>`}
    ${number("temperature", "Temperature", {min: 0, max: 2, step: "any"})}
    ${number("most", "Most tokens", {min: 1, step: 1})}
    ${number("seed", "Seed", {step: 1, placeholder: "drawn"})}
  </div>`;
}

// Scrolls to the end when its content grows, unless the user has scrolled up.
export class Scrolled extends Component {
  getSnapshotBeforeUpdate() {
    return this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < 40;
  }
  componentDidUpdate(before, state, atEnd) {
    if (atEnd) this.node.scrollTop = this.node.scrollHeight;
  }
  render({children, ...rest}) {
    return html`<div tabindex="0" ...${rest} ref=${(node) => (this.node = node ?? this.node)}>${children}</div>`;
  }
}

// Enter sends, Shift+Enter adds a line.
export const onEnter = (send) => (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
};

export const answered = (messages) => messages.map(({role, content, output}) => ({role, content: output ? text(output) : content}));
