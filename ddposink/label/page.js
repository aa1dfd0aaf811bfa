"use strict";
// The token is part of the address; it is sent along as a header, which no foreign page can do.
const token = location.pathname.split("/")[1];
const at = (id) => document.getElementById(id);
let state = null;
let busy = false;

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "X-Token": token }, body: JSON.stringify(body) } : {};
  const answer = await fetch(path, options);
  if (answer.status === 409) return (await fetch("state")).json(); // answered elsewhere: show what is next
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

function show(next) {
  state = next;
  const done = state.pair === undefined;
  at("prompt").textContent = done ? "All pairs are judged. Thank you!" : state.prompt;
  at("bar").value = state.total ? state.done / state.total : 0;
  at("count").textContent = `${state.done} of ${state.total}`;
  at("pair").classList.toggle("hidden", done);
  at("tie").disabled = done;
  at("undo").disabled = !state.can_undo;
  if (!done) for (const side of ["a", "b"]) at(`image-${side}`).src = `picture/${state[side]}`;
}

async function act(path, body) {
  if (busy) return; // one key, one choice, however fast the fingers
  busy = true;
  try {
    show(await ask(path, body));
    at("message").textContent = "";
  } catch (error) {
    at("message").textContent = `Not saved: ${error.message}. Is the program still running?`;
  } finally {
    busy = false;
  }
}

const choose = (choice) => { if (state && state.pair !== undefined) act("choice", { pair: state.pair, choice }); };
const undo = () => act("undo", {});

for (const choice of ["a", "b", "tie"]) at(choice).addEventListener("click", () => choose(choice));
at("undo").addEventListener("click", undo);
at("end").addEventListener("click", async () => {
  await act("end", {});
  at("message").textContent = "Ended. You can close this page.";
});
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const keys = { ArrowLeft: () => choose("a"), ArrowRight: () => choose("b"), ArrowDown: () => choose("tie"), u: undo };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
act("state");
