// Keeps the page live: fetches it again and replaces the parts that changed. Without this script
// the page shows the figures of the moment at which it was loaded.
"use strict";
(() => {
  const EVERY_MS = 2000;
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

  // A part that somebody reads with the keyboard or has marked stays as it is.
  const isInUse = (part) => {
    const selection = document.getSelection();
    return part.contains(document.activeElement)
      || (!selection.isCollapsed && part.contains(selection.anchorNode));
  };

  let timer = 0;
  const refresh = async () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, EVERY_MS);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.href, {
        cache: "no-store",
        signal: AbortSignal.timeout(5000),
      });
      if (!answer.ok) throw new Error(`answer ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const next = fresh.getElementById(part.id);
        if (next && next.innerHTML !== part.innerHTML && !isInUse(part)) {
          part.replaceChildren(...next.childNodes);
        }
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
