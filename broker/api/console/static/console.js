// The pages work without this, but for signing: passkeys, live pages, keys.
// Nothing is drawn from text: nodes come from pages that the server rendered.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// ——— bytes and base64url

const enc = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const dec = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

// ——— asking the server

async function ask(path, fields) {
  const answer = await fetch(path, {
    method: "POST", credentials: "same-origin", redirect: "error",
    headers: { Accept: "application/json", "Content-Type": "application/x-www-form-urlencoded" },
    body: new URLSearchParams(fields),
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.detail || "The server does not answer as it should. Try again.");
  return body;
}

// ——— passkeys

// say tells a form's state; it is read aloud, too.
function say(form, text, bad = false) {
  const at = $("[data-status]", form);
  if (at) { at.textContent = text; at.classList.toggle("bad", bad); }
}

// why turns what a browser says of a refused ceremony into a sentence.
function why(error) {
  if (error.name === "NotAllowedError") return "Nothing was signed: it was cancelled, or took too long.";
  if (error.name === "InvalidStateError") return "This device holds one of your passkeys already.";
  if (error.name === "SecurityError") return "Passkeys work only under the name that this cluster is configured for.";
  return error.message;
}

async function once(form, work) {
  const button = $("button[data-needs-script]", form);
  button.disabled = true;
  say(form, "Waiting for your passkey…");
  try {
    await work();
    say(form, "Done.");
    form.submit();
  } catch (error) {
    say(form, why(error), true);
    button.disabled = false;
  }
}

// keysOf reads the caller's passkeys: credential ids, and the thumbprints under
// which the ledger knows them.
function keysOf(form) {
  return (form.dataset.keys || "").split(" ").filter(Boolean).map((pair) => {
    const at = pair.indexOf("=");
    return { id: pair.slice(0, at), thumbprint: pair.slice(at + 1) };
  });
}

// sign lets one of the passkeys sign 32 bytes, and puts the signature into the
// form as the authenticator gave it.
async function sign(form, prefix, challenge, rpId, keys) {
  const made = await navigator.credentials.get({ publicKey: {
    challenge, rpId: rpId || undefined, userVerification: "required", timeout: 120000,
    allowCredentials: keys.map((k) => ({ type: "public-key", id: dec(k.id) })),
  } });
  const used = keys.find((k) => k.id === enc(made.rawId));
  form.elements[prefix + "key"].value = used ? used.thumbprint : "";
  form.elements[prefix + "authenticator_data"].value = enc(made.response.authenticatorData);
  form.elements[prefix + "client_data_json"].value = enc(made.response.clientDataJSON);
  form.elements[prefix + "assertion"].value = enc(made.response.signature);
}

function signIn(form) {
  once(form, async () => {
    const options = await ask("/signin/begin", {});
    const made = await navigator.credentials.get({ publicKey: { ...options, challenge: dec(options.challenge), allowCredentials: [] } });
    form.elements.credential.value = JSON.stringify({
      id: made.id, rawId: enc(made.rawId), type: made.type, clientExtensionResults: {},
      response: {
        authenticatorData: enc(made.response.authenticatorData), clientDataJSON: enc(made.response.clientDataJSON),
        signature: enc(made.response.signature), userHandle: made.response.userHandle ? enc(made.response.userHandle) : null,
      },
    });
  });
}

function approve(form) {
  once(form, async () => {
    let challenge = form.dataset.challenge;
    if (form.dataset.review) {
      const verdict = form.elements.verdict.value;
      if (!verdict) throw new Error("Say first whether it was justified.");
      ({ challenge } = await ask(form.dataset.review, { csrf: form.elements.csrf.value, verdict, reason: form.elements.reason.value }));
    }
    await sign(form, "", dec(challenge), form.dataset.rpid, keysOf(form));
  });
}

function newKey(form) {
  once(form, async () => {
    const csrf = form.elements.csrf.value;
    const options = await ask("/keys/begin", { csrf });
    const made = await navigator.credentials.create({ publicKey: {
      ...options, challenge: dec(options.challenge), user: { ...options.user, id: dec(options.user.id) },
      excludeCredentials: (options.excludeCredentials || []).map((c) => ({ ...c, id: dec(c.id) })),
    } });
    const credential = JSON.stringify({
      id: made.id, rawId: enc(made.rawId), type: made.type, clientExtensionResults: {},
      response: { attestationObject: enc(made.response.attestationObject), clientDataJSON: enc(made.response.clientDataJSON) },
    });
    const offer = await ask("/keys/offer", { csrf, credential });
    form.elements.ticket.value = offer.ticket;
    const hash = dec(offer.hash.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""));
    const id = (raw) => raw.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    say(form, "Once more, to prove that you hold it…");
    await sign(form, "proof_", hash, offer.rp_id, [{ id: id(offer.credential_id), thumbprint: offer.thumbprint }]);
    if (offer.vouch === "approvers" && offer.founder) {
      form.elements.vouch_jws.value = await vouchByToken(hash);
      if (form.elements.vouch_jws.value) form.elements.vouch_key.value = offer.founder;
    }
    sessionStorage.removeItem(voucher);
    if (offer.vouch === "key") {
      say(form, "Now one that you have already, to vouch for it…");
      await sign(form, "vouch_", hash, offer.rp_id, (offer.others || []).map((k) => ({ id: id(k.credential_id), thumbprint: k.thumbprint })));
    }
  });
}

// ——— enrolment tokens

// The token's own secret never leaves this page: what is handed in derives from
// it, and so does, for the administrators named at init, the key that vouches
// for their first passkey. The codec is the client's (package identity).
const voucher = "mayfly-voucher";

async function derive(secret, purpose) {
  const key = await crypto.subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", key, new TextEncoder().encode(purpose)));
}

function enrol(form) {
  once(form, async () => {
    say(form, "Redeeming it…");
    const text = $("[data-token]", form).value.replace(/\s+/g, "");
    let raw;
    try { raw = dec(text.slice(4)); } catch { raw = new Uint8Array(); }
    if (!text.startsWith("mfe_") || raw.length < 72 || raw[0] !== 1 || raw[1] * 256 + raw[2] !== raw.length) {
      throw new Error("This is not a whole enrolment token; it starts with mfe_ and must be copied to its end.");
    }
    const secret = raw.slice(3, 35), body = raw.slice(0, -4);
    body.set(await derive(secret, "mayfly.enrol.login.v1"), 3);
    const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", body)).slice(0, 4);
    form.elements.token.value = "mfe_" + enc(new Uint8Array([...body, ...sum]));
    sessionStorage.setItem(voucher, enc(await derive(secret, "mayfly.enrol.approve.v1")));
    $("[data-token]", form).value = "";
  });
}

// vouchByToken signs with the key of the enrolment token (RFC 8037; the seed in
// the form of RFC 8410).
async function vouchByToken(hash) {
  const seed = sessionStorage.getItem(voucher);
  if (!seed) return "";
  const der = new Uint8Array([0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20, ...dec(seed)]);
  const key = await crypto.subtle.importKey("pkcs8", der, { name: "Ed25519" }, false, ["sign"]);
  const head = enc(new TextEncoder().encode('{"alg":"EdDSA"}')) + "." + enc(hash);
  return head + "." + enc(await crypto.subtle.sign("Ed25519", key, new TextEncoder().encode(head)));
}

for (const [attribute, work] of [["data-enrol", enrol], ["data-signin", signIn], ["data-sign", approve], ["data-newkey", newKey]]) {
  for (const form of $$(`form[${attribute}]`)) {
    form.addEventListener("submit", (event) => { event.preventDefault(); work(form); });
  }
}
if (window.PublicKeyCredential) {
  for (const button of $$("button[data-needs-script]")) button.disabled = false;
} else {
  for (const form of $$("form:has(button[data-needs-script])")) say(form, "This browser knows no passkeys.", true);
}

// ——— time, told anew every few seconds

function spell(ms) {
  const s = Math.floor(Math.abs(ms) / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  const days = (n) => n + (n === 1 ? " day" : " days");
  let text;
  if (s < 60) text = s + " s";
  else if (m < 60) text = m + " min";
  else if (h < 24) text = m % 60 ? `${h} h ${m % 60} min` : h + " h";
  else text = h % 24 && d <= 9 ? `${days(d)} ${h % 24} h` : days(d);
  return ms >= 0 ? "in " + text : text + " ago";
}

// The server's clock is the one that counts; the page was rendered by it.
const skew = Date.parse(document.documentElement.dataset.now || "") - Date.now() || 0;

function tick() {
  for (const time of $$("time[data-rel]")) {
    const text = spell(Date.parse(time.dateTime) - Date.now() - skew);
    if (time.textContent !== text) time.textContent = text;
  }
}
setInterval(tick, 5000);

// ——— live pages

let looking = false, again = false, last = 0;

// refresh loads the page again and swaps what has changed, but nothing that
// somebody is writing in, has opened or has moved to.
async function refresh() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of $$("[data-live][id]")) {
      const now = fresh.getElementById(part.id);
      if (!now || now.isEqualNode(part) || $("details[open]", part)) continue;
      const focus = part.contains(document.activeElement) ? document.activeElement : null;
      if (focus && !focus.matches("a[href]")) continue;
      const href = focus && focus.getAttribute("href");
      part.replaceWith(document.adoptNode(now));
      if (href) $$("a[href]", document.getElementById(part.id)).find((a) => a.getAttribute("href") === href)?.focus();
    }
    document.title = fresh.title;
    tick();
  } catch { /* the next event tries again */ } finally {
    looking = false;
    last = Date.now();
    if (again) { again = false; later(); }
  }
}

// later refreshes at most every two seconds, and not while nobody looks.
let planned = 0;
function later() {
  clearTimeout(planned);
  planned = setTimeout(() => { if (!document.hidden) refresh(); else again = true; }, Math.max(0, 2000 - (Date.now() - last)));
}
document.addEventListener("visibilitychange", () => { if (!document.hidden && again) { again = false; later(); } });

if ($("main [data-live]") && document.body.classList.contains("in")) {
  const stream = new EventSource("/live");
  let size = document.documentElement.dataset.size;
  stream.addEventListener("size", (event) => {
    if (size !== event.data) later();
    size = event.data;
  });
  stream.addEventListener("ended", () => { stream.close(); location.assign("/signin?done=ended"); });
  window.addEventListener("pagehide", () => stream.close());
}

// ——— on a phone the sections stand in a row: show the one that is open

const current = $(".side nav [aria-current]");
if (current) current.parentElement.scrollLeft = current.offsetLeft - current.parentElement.clientWidth / 2 + current.clientWidth / 2;

// ——— keys

const help = $("#help");
for (const button of $$("[data-help]")) {
  button.hidden = false;
  button.addEventListener("click", () => help.showModal());
}

function step(by) {
  const rows = $$("[data-row]").filter((a) => a.offsetParent !== null);
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  const to = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by));
  rows[to].focus();
  rows[to].scrollIntoView({ block: "nearest" });
}

let leader = 0;
const goes = { i: "/", g: "/grants", t: "/tasks", l: "/leases", a: "/audit", p: "/policies", c: "/cluster" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.closest("input, textarea, select, dialog")) {
    if (event.key === "Escape" && !event.target.closest("dialog")) event.target.blur();
    return;
  }
  if (Date.now() - leader < 1200 && goes[event.key]) {
    leader = 0;
    location.assign(goes[event.key]);
  } else if (event.key === "g") leader = Date.now();
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "?") help.showModal();
  else if (event.key === "u") $("[data-up]")?.click();
  else if (event.key === "/" && $("[data-filter]")) { event.preventDefault(); $("[data-filter]").focus(); }
});
