// The page of a conversation. Texts of users and models are set as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
const headers = { "X-Session": meta("session") };
const log = byId("log");
let pictures = []; // files of the next question
let busy = false;

function element(parent, tag, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  parent.append(made);
  return made;
}

function showPictures() {
  const list = byId("pictures");
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  list.replaceChildren();
  for (const file of pictures) {
    const item = element(list, "li");
    element(item, "img", { src: URL.createObjectURL(file), alt: file.name, title: file.name });
    element(item, "button", {
      type: "button",
      textContent: "Remove",
      onclick: () => {
        pictures = pictures.filter((other) => other !== file);
        showPictures();
      },
    });
  }
}

function addPictures(files) {
  pictures.push(...[...files].filter((file) => file.type.startsWith("image/")));
  showPictures();
}

function setBusy(value) {
  busy = value;
  byId("ask").disabled = value;
  byId("stop").disabled = !value;
  byId("again").disabled = value || !log.querySelector("article.question");
}

function scrollDown() {
  log.scrollTop = log.scrollHeight;
}

// One answer: elements by kind and step, since later events replace earlier ones.
function answerView(note) {
  const article = element(log, "article", { className: "answer" });
  const foot = element(article, "p", { className: "foot", textContent: "..." });
  const shown = new Map();
  const find = (kind, step, tag) => {
    const key = `${kind} ${step}`;
    if (!shown.has(key)) {
      shown.set(key, element(article, tag));
      article.append(foot);
    }
    return shown.get(key);
  };
  return {
    show(event) {
      if (event.kind === "text") {
        find("text", event.step, "p").textContent = event.text;
      } else if (event.kind === "drawing" && event.url === null) {
        find("drawing", event.step, "figure").replaceChildren(
          Object.assign(document.createElement("progress"), { value: event.share }));
      } else if (event.kind === "drawing") {
        find("drawing", event.step, "figure").replaceChildren(
          Object.assign(document.createElement("img"), {
            src: event.url, alt: `Drawing of step ${event.step}` }));
      } else if (event.kind === "end") {
        foot.textContent = `${event.reason ?? "end"} · ${event.tokens} tokens · ${event.seconds} s · ${note}`;
      } else if (event.kind === "error") {
        this.fail(event.message);
      }
      scrollDown();
    },
    fail(message) {
      element(article, "p", { className: "error", textContent: message });
      foot.remove();
      scrollDown();
    },
    stopped() {
      if (foot.isConnected && foot.textContent === "...") foot.textContent = `stopped · ${note}`;
      for (const bar of article.querySelectorAll("progress")) bar.remove();
    },
  };
}

// Server-sent events: blocks that end with an empty line; lines with a colon first are comments.
async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ")) take(JSON.parse(block.slice(6)));
    }
  }
}

function newForm() {
  const form = new FormData();
  form.set("seed", byId("seed").value);
  form.set("temperature", byId("temperature").value);
  return form;
}

async function send(form) {
  setBusy(true);
  const view = answerView(`seed ${form.get("seed")}`);
  try {
    const response = await fetch("ask", { method: "POST", headers, body: form });
    if (response.ok) {
      await readEvents(response, (event) => view.show(event));
    } else {
      view.fail((await response.json()).error);
    }
  } catch (error) {
    view.fail(`the server does not answer: ${error.message}`);
  }
  view.stopped();
  setBusy(false);
}

function ask() {
  const text = byId("text").value;
  if (busy || (!text.trim() && !pictures.length)) return;
  const form = newForm();
  form.set("text", text);
  if (byId("follow_up").checked) form.set("follow_up", "on");
  const size = pictures.reduce((sum, file) => sum + file.size, 0);
  const article = element(log, "article", { className: "question" });
  for (const file of pictures) {
    form.append("picture", file, file.name);
    element(article, "img", { src: URL.createObjectURL(file), alt: file.name });
  }
  element(article, "p", { textContent: text });
  if (size > Number(meta("max-upload-bytes"))) {
    element(article, "p", { className: "error", textContent: "The pictures are too large together." });
    return;
  }
  pictures = [];
  showPictures();
  byId("text").value = "";
  send(form);
}

function askAgain() {
  if (busy) return;
  byId("seed").value = Number(byId("seed").value) + 1;
  const form = newForm();
  form.set("again", "on");
  send(form);
}

async function clearAll() {
  await fetch("clear", { method: "POST", headers });
  for (const article of log.querySelectorAll("article")) article.remove();
  setBusy(busy);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
byId("files").addEventListener("change", (event) => {
  addPictures(event.target.files);
  event.target.value = "";
});
byId("again").addEventListener("click", askAgain);
byId("stop").addEventListener("click", () => fetch("stop", { method: "POST", headers }));
byId("clear").addEventListener("click", clearAll);
document.addEventListener("paste", (event) => addPictures(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("drop");
});
document.addEventListener("dragleave", () => document.body.classList.remove("drop"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  addPictures(event.dataTransfer.files);
});
