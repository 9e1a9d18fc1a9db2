// The page: which conversation is shown, what its parts do together.

import { Answering } from './answering.js';
import { Client } from './api/client.js';
import { element } from './dom.js';
import { takePicture, toDataUrl } from './picture/intake.js';
import { Library } from './store/library.js';
import { Preferences, keepDraft, takeDraft } from './store/preferences.js';
import { append, choose, newConversation, newId, path, picturesOf, shownText, textOf, titleOf } from './store/thread.js';
import { pack, unpack } from './store/transfer.js';
import { announce, announceAnswer } from './view/announce.js';
import { Composer } from './view/composer.js';
import { ConversationView } from './view/conversation.js';
import { acceptPictures } from './view/drop.js';
import { openPicture } from './view/inside.js';
import { Shell } from './view/shell.js';
import { openSettings } from './view/settings.js';
import { Sidebar } from './view/sidebar.js';
import { toast } from './view/toast.js';
import { welcome } from './view/welcome.js';

/** Between attempts to reach a server that does not answer, in milliseconds. */
const TRY_AGAIN = [1000, 2000, 5000, 10_000];

export class App {
  #preferences = new Preferences();
  #client = new Client(document.baseURI.split('#')[0], () => this.#preferences.key);
  #library;
  #answering;
  #shell;
  #sidebar;
  #view;
  #composer;
  #welcome;
  #models = [];
  /** The shown conversation; it is in the library once something was asked. */
  #conversation = newConversation();
  /** Whether the pictures that are shown offer to look inside. */
  #looksInside = false;
  #minings = new Map();
  #drafts = new Map();

  async start() {
    this.#library = await Library.open();
    this.#answering = new Answering(this.#client, this.#library, this.#preferences);
    this.#shell = new Shell(this.#preferences);
    this.#sidebar = new Sidebar(document.getElementById('sidebar'), {
      library: this.#library,
      current: () => this.#conversation.id,
      onnew: () => this.#open(null),
      onchoose: () => this.#shell.closeSidebar(),
      onrename: (id, title) => this.#rename(id, title),
      ondelete: (id) => this.#delete(id),
      onsettings: () => this.#settings(),
      isRunning: (id) => this.#answering.isRunning(id),
    });
    this.#view = new ConversationView(document.getElementById('scroller'), this.#messageActions());
    this.#welcome = welcome((file, question) => this.#tryExample(file, question));
    document.getElementById('scroller').prepend(this.#welcome);
    this.#composer = new Composer({
      id: 'question',
      label: 'Your question',
      placeholder: 'Ask about a picture, or anything',
      limits: () => this.#model?.limits ?? {},
      onsend: (draft) => this.#ask(draft, path(this.#conversation).at(-1)?.id ?? null),
      onstop: () => this.#answering.stop(this.#conversation.id),
      onup: () => this.#editLast(),
    });
    document.getElementById('composer').append(this.#composer.root);
    this.#listen();
    this.#route();
    const draft = takeDraft();
    if (draft && draft.id === (this.#stored ? this.#conversation.id : '')) this.#composer.set({ text: draft.text, pictures: [] });
    if (!this.#library.persistent) toast('This browser keeps nothing for this page (a private window, perhaps). Conversations last until it closes.');
    await this.#connect();
  }

  get #model() {
    const chosen = this.#preferences.get('model');
    return this.#models.find(({ id }) => id === chosen) ?? this.#models[0] ?? null;
  }

  #listen() {
    this.#library.addEventListener('list', () => {
      this.#sidebar.render();
      this.#showTitle();
    });
    this.#library.addEventListener('conversation', ({ detail }) => {
      if (detail !== this.#conversation.id) return;
      // Another tab may have put a newer object in its place.
      this.#conversation = this.#library.get(detail) ?? this.#conversation;
      this.#view.schedule(() => this.#conversation);
    });
    this.#library.addEventListener('trouble', ({ detail }) => toast(detail));
    this.#answering.addEventListener('start', () => this.#showRunning());
    addEventListener('pagehide', () => keepDraft({ id: this.#stored ? this.#conversation.id : '', text: this.#composer.draft.text }));
    this.#answering.addEventListener('end', ({ detail }) => this.#ended(detail));
    this.#preferences.addEventListener('change', ({ detail }) => {
      if (detail === 'model') this.#showModel();
    });
    acceptPictures(document.getElementById('drop'), (files) => this.#composer.addFiles(files));
    addEventListener('hashchange', () => this.#route());
    document.getElementById('skip').addEventListener('click', (event) => {
      // The address after # names a conversation, so the link must not follow itself.
      event.preventDefault();
      this.#composer.focus();
    });
  }

  /** Whether the shown conversation is in the library: something was asked in it. */
  get #stored() {
    return Boolean(this.#library.get(this.#conversation.id));
  }

  /** Shows the conversation that the address names. */
  #route() {
    const id = location.hash.slice(1);
    const known = this.#library.get(id);
    if (id && !known) history.replaceState(null, '', location.pathname + location.search);
    this.#open(known ?? null, false);
  }

  #open(conversation, focus = true) {
    this.#drafts.set(this.#conversation.id, this.#composer.draft);
    this.#conversation = conversation ?? newConversation();
    if (!conversation && location.hash) history.pushState(null, '', location.pathname + location.search);
    this.#composer.set(this.#drafts.get(this.#conversation.id) ?? { text: '', pictures: [] });
    this.#view.open(conversation ? this.#conversation : null);
    this.#showTitle();
    this.#showRunning();
    this.#shell.closeSidebar();
    if (focus) this.#composer.focus();
  }

  #showTitle() {
    const empty = !path(this.#conversation).length;
    const title = titleOf(this.#conversation);
    this.#shell.setTitle(title, empty);
    this.#welcome.hidden = !empty;
    document.body.classList.toggle('empty', empty);
  }

  #showRunning() {
    this.#composer.setRunning(this.#answering.isRunning(this.#conversation.id));
    this.#sidebar.render();
  }

  // --- asking ---

  /** Asks a question below the message `parent`. */
  async #ask({ text, pictures, draw }, parent) {
    const conversation = this.#conversation;
    await this.#answering.stop(conversation.id);
    const kept = pictures.map(({ id, blob, name, width, height }) => ({ id: id ?? newId(), conversation: conversation.id, blob, name, width, height }));
    const parts = kept.map(({ id }) => ({ type: 'picture', picture: id }));
    if (text) parts.push({ type: 'text', text });
    const question = append(conversation, parent, { role: 'user', parts, ...(draw && { draw }) });
    await this.#library.save(conversation, kept);
    if (this.#conversation === conversation) {
      if (location.hash !== `#${conversation.id}`) history.pushState(null, '', `#${conversation.id}`);
      this.#sidebar.render();
      this.#view.toEnd();
    }
    await this.#answer(conversation, question);
  }

  async #answer(conversation, question) {
    if (!this.#model) await this.#connect(false);
    // Without a list of models the request itself says what is wrong.
    await this.#answering.answer(conversation, question, this.#model?.id ?? 'default');
  }

  #ended({ conversation, message }) {
    this.#showRunning();
    const shown = conversation.id === this.#conversation.id;
    if (message.status === 'failed') announce(shown ? message.failure.message : `${titleOf(conversation)}: ${message.failure.message}`, 'alert');
    else if (message.status === 'stopped') announce('Stopped');
    else announceAnswer(shown ? 'Answer' : `Answer in ${titleOf(conversation)}`, shownText(message) || 'a picture');
  }

  async #tryExample(file, question) {
    try {
      const response = await fetch(new URL(`examples/${file}`, document.baseURI));
      if (!response.ok) throw new Error(String(response.status));
      const blob = await response.blob();
      const picture = await takePicture(new File([blob], file, { type: blob.type }));
      await this.#ask({ text: question, pictures: [picture], draw: false }, null);
      this.#composer.focus();
    } catch {
      toast('The example cannot be loaded. The server may have been stopped.');
    }
  }

  // --- what can be done with a message ---

  #messageActions() {
    return {
      pictureUrl: (id) => this.#library.pictureUrl(id),
      canLookInside: () => this.#model?.mining ?? false,
      progress: (id) => this.#answering.progress(id),
      onpicture: (id) => this.#openPicture(id),
      onask: (id) => this.#askAbout(id),
      ondraw: (message) => this.#drawWords(message),
      onretry: (message) => this.#retry(message),
      onedit: (message) => this.#edit(message),
      onversion: (message) => this.#showVersion(message),
      onremedy: (remedy, message) => {
        if (remedy === 'edit') this.#edit(this.#conversation.messages[message.parent]);
        else this.#settings(remedy === 'key' ? 'key' : undefined);
      },
    };
  }

  #retry(message) {
    const conversation = this.#conversation;
    const question = conversation.messages[message.parent];
    if (!question || this.#answering.isRunning(conversation.id)) return;
    // An answer that failed before its first word is replaced; any other becomes an earlier version.
    const answered = Object.values(conversation.messages).some((other) => other.parent === message.id);
    if (message.status === 'failed' && !message.parts.length && !answered) delete conversation.messages[message.id];
    this.#composer.focus();
    this.#answer(conversation, question);
  }

  /** Puts a picture that was drawn into the next question. */
  async #askAbout(id) {
    const picture = await this.#library.picture(id);
    if (picture) this.#composer.attach(picture);
  }

  /** Draws the words of a question for whose answer the model wrote no prompt. */
  #drawWords(message) {
    const conversation = this.#conversation;
    const words = textOf(conversation.messages[message.parent]).trim();
    if (!words || this.#answering.isRunning(conversation.id)) return;
    this.#composer.focus();
    this.#answering.draw(conversation, message, words);
  }

  async #edit(message) {
    if (!message || this.#answering.isRunning(this.#conversation.id)) return;
    const pictures = (await Promise.all(picturesOf(message).map((id) => this.#library.picture(id)))).filter(Boolean);
    const composer = new Composer({
      label: 'Edit the question',
      editing: true,
      limits: () => this.#model?.limits ?? {},
      onsend: (draft) => {
        this.#view.stopEditing();
        this.#composer.focus();
        this.#ask(draft, message.parent);
      },
      oncancel: () => this.#view.stopEditing(),
    });
    composer.setPainting(this.#model?.painting ?? false);
    composer.setDrawing(message.draw === true);
    composer.set({ text: textOf(message), pictures });
    this.#view.edit(message.id, composer);
  }

  #editLast() {
    this.#edit(path(this.#conversation).findLast((message) => message.role === 'user'));
  }

  async #showVersion(message) {
    if (!message || this.#answering.isRunning(this.#conversation.id)) return;
    choose(this.#conversation, message);
    await this.#library.save(this.#conversation);
    this.#view.render(this.#conversation);
    this.#view.focusVersions(message.id);
  }

  async #openPicture(id) {
    const url = await this.#library.pictureUrl(id);
    const picture = await this.#library.picture(id);
    if (!picture) return;
    const model = this.#model;
    await openPicture(url, picture.name, model?.mining ? (signal) => this.#mining(model.id, picture, signal) : null);
  }

  /** What the model mined in a picture; asked for once. */
  async #mining(model, picture, signal) {
    const name = `${model} ${picture.id}`;
    if (!this.#minings.has(name)) this.#minings.set(name, await this.#client.mining(model, await toDataUrl(picture.blob), picture.conversation, signal));
    return this.#minings.get(name);
  }

  // --- conversations ---

  async #rename(id, title) {
    const conversation = this.#library.get(id);
    conversation.title = title;
    await this.#library.save(conversation);
  }

  #delete(id) {
    const conversation = this.#library.get(id);
    const next = this.#sidebar.neighbour(id);
    this.#answering.stop(id);
    const removed = this.#library.remove(id);
    const wasShown = this.#conversation.id === id;
    if (wasShown) this.#open(null, false);
    const undo = () => {
      removed.restore();
      if (wasShown) location.hash = id;
      this.#sidebar.focusItem(id);
      announce('The conversation is back');
    };
    toast(`Deleted \u201c${titleOf(conversation)}\u201d.`, { label: 'Undo', run: undo, takesFocus: true, left: () => this.#sidebar.focusItem(next) });
  }

  async #clear() {
    for (const { id } of this.#library.list()) {
      this.#answering.stop(id);
      await this.#library.remove(id).gone;
    }
    this.#open(null, false);
    document.querySelector('dialog[open]')?.close();
    announce('All conversations are deleted');
  }

  async #export(all) {
    const conversations = all ? this.#library.list() : [this.#conversation];
    const pictures = [];
    for (const { id } of conversations) {
      for (const { blob, ...about } of await this.#library.picturesOf(id)) {
        pictures.push({ ...about, type: blob.type, bytes: new Uint8Array(await blob.arrayBuffer()) });
      }
    }
    const file = new Blob([pack(conversations, pictures)], { type: 'application/json' });
    const url = URL.createObjectURL(file);
    const name = `mini-gemini-${new Date().toISOString().slice(0, 10)}.json`;
    element('a', { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async #import(file) {
    try {
      const imported = unpack(await file.text());
      for (const { conversation, pictures } of imported) {
        const kept = pictures.map(({ bytes, type, ...about }) => ({ ...about, blob: new Blob([bytes], { type }) }));
        await this.#library.save(conversation, kept);
      }
      const count = imported.length === 1 ? '1 conversation' : `${imported.length} conversations`;
      toast(`Imported ${count}.`);
    } catch (error) {
      toast(error.message);
    }
  }

  #settings(focus) {
    openSettings(
      {
        preferences: this.#preferences,
        models: () => this.#models,
        model: () => this.#model,
        count: () => this.#library.list().length,
        canExportOne: () => path(this.#conversation).length > 0,
        onkey: async () => {
          await this.#connect(false);
          toast(this.#models.length ? 'The server accepts the key.' : 'The server does not accept this key.');
        },
        onexport: (all) => this.#export(all),
        onimport: (file) => this.#import(file),
        onclear: () => this.#clear(),
      },
      focus,
    );
  }

  // --- the server ---

  /** Asks for the models; keeps trying while the server is not there. */
  async #connect(keepTrying = true, attempt = 0) {
    try {
      this.#models = await this.#client.models();
      this.#shell.setTrouble(null);
    } catch (failure) {
      this.#models = failure.kind === 'key' ? [] : this.#models;
      const wait = TRY_AGAIN[Math.min(attempt, TRY_AGAIN.length - 1)];
      announce(failure.message);
      if (failure.kind === 'key') this.#shell.setTrouble(failure.message, { label: 'Enter the API key', run: () => this.#settings('key') });
      else this.#shell.setTrouble(failure.message, { label: 'Try again', run: () => this.#connect(false) });
      if (keepTrying && failure.kind !== 'key') setTimeout(() => this.#models.length || this.#connect(true, attempt + 1), wait);
    }
    this.#showModel();
  }

  #showModel() {
    this.#shell.setModel(this.#model?.id ?? '');
    this.#composer.setPainting(this.#model?.painting ?? false);
    // Pictures offer to look inside only when the model can show it.
    const inside = this.#model?.mining ?? false;
    if (inside !== this.#looksInside && path(this.#conversation).length) this.#view.open(this.#conversation);
    this.#looksInside = inside;
  }
}
