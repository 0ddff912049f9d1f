// The page: one of two views beside the cluster's status, and a field for the token.
import {Component, render} from "./vendor/preact.mjs";
import {call, token} from "./api.mjs";
import {Chat} from "./chat.mjs";
import {DEFAULTS, html} from "./parts.mjs";
import {Race} from "./race.mjs";
import {Status} from "./status.mjs";

const VIEWS = [["chat", "Chat"], ["race", "Off against auto"]];

class App extends Component {
  state = {view: "chat", settings: DEFAULTS, model: "", problem: "", entry: 0, accessOpen: false, given: token.get()};

  componentDidMount() {
    this.learn();
  }

  learn = async () => {
    try {
      const {data} = await (await call("v1/models")).json();
      this.setState({model: data[0].id, problem: "", accessOpen: false});
    } catch (error) {
      this.refused(error);
      this.setState({problem: error.message});
    }
  };

  refused = (error) => {
    if (error.status === 401) this.setState({accessOpen: true}, () => this.field.focus());
  };

  enter = (event) => {
    event.preventDefault();
    token.set(this.state.given.trim());
    this.setState(({entry}) => ({entry: entry + 1}));
    this.learn();
  };

  turn = (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const place = VIEWS.findIndex(([name]) => name === this.state.view), [next] = VIEWS[(place + step + VIEWS.length) % VIEWS.length];
    this.setState({view: next}, () => document.getElementById(`tab-${next}`).focus());
  };

  render(_, {view, settings, model, problem, entry, accessOpen, given}) {
    const onSettings = (changed) => this.setState({settings: changed}), views = {chat: Chat, race: Race};
    return html`
      <header>
        <h1>outrider${model && html` <span class="soft">serves</span> ${model}`}</h1>
        <details class="access" open=${accessOpen} onToggle=${(event) => this.setState({accessOpen: event.target.open})}>
          <summary id="access">Token</summary>
          <form onSubmit=${this.enter}>
            <input id="token" type="password" autocomplete="off" aria-label="Token" placeholder="if the gateway requires one" ref=${(node) => (this.field = node)}
              value=${given} onInput=${(event) => this.setState({given: event.target.value})} />
            <button>Use</button>
          </form>
        </details>
        ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      </header>
      <div class="columns">
        <main>
          <div role="tablist" aria-label="Views" onKeyDown=${this.turn}>
            ${VIEWS.map(([name, label]) => html`<button type="button" role="tab" id=${`tab-${name}`} aria-selected=${view === name} aria-controls=${`view-${name}`}
              tabindex=${view === name ? 0 : -1} onClick=${() => this.setState({view: name})}>${label}</button>`)}
          </div>
          ${VIEWS.map(([name]) => html`<div role="tabpanel" id=${`view-${name}`} aria-labelledby=${`tab-${name}`} hidden=${view !== name}>
            <${views[name]} ...${{settings, onSettings, model, onRefusal: this.refused}} />
          </div>`)}
        </main>
        <aside aria-label="Cluster"><${Status} entry=${entry} /></aside>
      </div>`;
  }
}

render(html`<${App} />`, document.getElementById("app"));
