// Pictures that are dropped or pasted anywhere on the page.

import { pictureFiles } from '../picture/intake.js';

/**
 * @param {HTMLElement} cover shown while something hovers over the page
 * @param {(files: File[]) => void} take
 */
export function acceptPictures(cover, take) {
  // Every child that the pointer crosses enters and leaves.
  let depth = 0;
  const carriesFiles = ({ dataTransfer }) => dataTransfer?.types.includes('Files') && !document.querySelector('dialog[open]');
  const leave = () => {
    depth = 0;
    cover.hidden = true;
  };
  addEventListener('dragenter', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth += 1;
    cover.hidden = false;
  });
  addEventListener('dragleave', (event) => {
    if (carriesFiles(event) && (depth -= 1) <= 0) leave();
  });
  addEventListener('dragover', (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  addEventListener('drop', (event) => {
    if (!carriesFiles(event)) return;
    // Also for files that are no pictures: the browser would open them in place of the page.
    event.preventDefault();
    leave();
    take([...event.dataTransfer.files]);
  });
  document.addEventListener('paste', (event) => {
    const files = pictureFiles(event.clipboardData);
    if (!files.length || document.querySelector('dialog[open]')) return;
    event.preventDefault();
    take(files);
  });
}
