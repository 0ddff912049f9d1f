// A conversation with streamed answers.
import {Component} from "./vendor/preact.mjs";
import {chat, empty} from "./api.mjs";
import {answered, requestFields, depth, Figures, html, Legend, onEnter, OutputText, Scrolled, Settings} from "./parts.mjs";

export class Chat extends Component {
  state = {messages: [], draft: "", problem: "", running: null};

  send = async () => {
    const {draft, messages, running} = this.state, {settings, onRefusal} = this.props;
    if (running || !draft.trim()) return;
    const conversation = [...messages, {role: "user", content: draft}], stop = new AbortController();
    const show = (output) => this.setState({messages: [...conversation, {role: "assistant", output}]});
    this.setState({messages: [...conversation, {role: "assistant", output: empty()}], draft: "", problem: "", running: stop});
    try {
      await chat({...requestFields(settings, answered(conversation)), speculation: depth(settings.speculation)}, stop.signal, show);
    } catch (error) {
      if (error.name === "AbortError") this.setState({problem: "Stopped."});
      else {
        onRefusal(error);
        const nothing = this.state.messages.at(-1).output?.tokenIds.length === 0;
        this.setState({problem: error.message, ...(nothing && {messages, draft})});
      }
    }
    this.setState({running: null});
  };

  clear = () => {
    this.setState({messages: [], problem: ""});
    this.field.focus();
  };

  onKey = (event) => {
    if (event.key === "Escape") this.state.running?.abort();
  };

  render({settings, onSettings, model}, {messages, draft, problem, running}) {
    return html`<div class="chat" onKeyDown=${this.onKey}>
      <${Scrolled} class="log" role="log" aria-label="Conversation" aria-busy=${running !== null}>
        ${messages.length === 0 && html`<p class="soft">Say something to ${model || "the model"}. Enter sends, Shift+Enter begins a line, Escape stops an answer.</p><${Legend} />`}
        ${messages.map((one) => html`<article class=${one.role}>
          <h3>${one.role === "user" ? "You" : model}</h3>
          ${one.output ? html`<${OutputText} output=${one.output} /><${Figures} output=${one.output} />` : html`<div class="text">${one.content}</div>`}
        </article>`)}
      </${Scrolled}>
      <p class="problem" role="alert">${problem}</p>
      <div class="compose">
        <textarea id="message" rows="2" aria-label="Message" ref=${(node) => (this.field = node)} value=${draft}
          onInput=${(event) => this.setState({draft: event.target.value})} onKeyDown=${onEnter(this.send)}></textarea>
        <div class="buttons">
          ${running ? html`<button type="button" onClick=${() => running.abort()}>Stop</button>`
            : html`<button type="button" class="first" onClick=${this.send}>Send</button>`}
          <button type="button" disabled=${running || !messages.length} onClick=${this.clear}>New</button>
        </div>
      </div>
      <${Settings} settings=${settings} onChange=${onSettings} />
    </div>`;
  }
}
