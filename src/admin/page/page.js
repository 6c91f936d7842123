// Keeps the page live: fetches it again and replaces the parts that changed. Without this script
// the page shows the figures of the moment at which it was loaded.
"use strict";
(() => {
  const EVERY_MS = 2000;
  // Browsers refuse to fetch an address with a name and a password. They send those of the page.
  const here = new URL(location.href);
  here.username = "";
  here.password = "";
  const status = document.getElementById("live");
  const button = document.createElement("button");
  button.type = "button";
  let paused = false;
  let label = "";

  // Assistive technology reads the status when it changes, so it is written only then.
  const say = (text, isBad) => {
    if (text === label) return;
    label = text;
    status.textContent = text;
    status.classList.toggle("bad", isBad);
  };
  const show = () => {
    button.textContent = paused ? "Resume" : "Pause";
    if (paused) say("paused", false);
  };
  button.addEventListener("click", () => {
    paused = !paused;
    show();
    if (!paused) refresh();
  });

  // A part that somebody reads with the keyboard or has marked stays as it is. The heading of a file
  // only has the focus because it was opened.
  const isInUse = (part) => {
    const selection = document.getSelection();
    const focused = document.activeElement;
    return (part.contains(focused) && focused.tagName !== "SUMMARY")
      || (!selection.isCollapsed && part.contains(selection.anchorNode));
  };
  const headings = (part) => [...part.querySelectorAll("summary")];
  const same = (part, heading) =>
    headings(part).find(({ textContent }) => textContent === heading.textContent);
  const replace = (part, next) => {
    // Files that were opened stay open.
    for (const heading of headings(part)) {
      const successor = same(next, heading);
      if (successor && heading.parentElement.open) successor.parentElement.open = true;
    }
    if (next.innerHTML === part.innerHTML || isInUse(part)) return;
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    part.replaceChildren(...next.childNodes);
    if (focused) same(part, focused)?.focus();
  };

  let timer = 0;
  const refresh = async () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, EVERY_MS);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(here, {
        cache: "no-store",
        signal: AbortSignal.timeout(5000),
      });
      if (!answer.ok) throw new Error(`answer ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const next = fresh.getElementById(part.id);
        if (next) replace(part, next);
      }
      if (!paused) say("live", false);
    } catch {
      say("no answer: the figures are old", true);
    }
  };

  status.after(button);
  show();
  say("live", false);
  timer = setTimeout(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });
})();
