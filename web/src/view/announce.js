// Words for screen readers. An answer is announced once, when it is complete; a region that reads every token would never be quiet.

const LONGEST = 600;

/** @param {string} text @param {'status' | 'alert'} urgency an alert interrupts what is being read */
export function announce(text, urgency = 'status') {
  // Outside of an open dialog nothing is read out.
  const region = document.querySelector('dialog[open] [role=status]') ?? document.getElementById(urgency);
  // The same words twice are announced twice only when the region was empty in between.
  region.textContent = '';
  setTimeout(() => {
    region.textContent = text;
  }, 50);
}

/** Announces a finished answer, the beginning of a long one. */
export function announceAnswer(name, text) {
  const words = text.trim();
  if (words.length <= LONGEST) announce(`${name}: ${words}`);
  else announce(`${name}: ${words.slice(0, words.lastIndexOf(' ', LONGEST))} \u2026 The rest is in the conversation.`);
}
