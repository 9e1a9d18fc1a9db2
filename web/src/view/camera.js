// Taking a photograph with the computer's camera.

import { element, icon } from '../dom.js';
import { takeFrame } from '../picture/intake.js';
import { openDialog } from './dialog.js';

/** Browsers offer the camera on this machine's own pages and over TLS only. */
export function cameraAvailable() {
  return Boolean(navigator.mediaDevices?.getUserMedia);
}

/**
 * Opens the camera and waits for a picture.
 * @returns {Promise<import('../picture/intake.js').TakenPicture | null>} null when the person closes it
 */
export function photograph() {
  return new Promise((resolve) => {
    let stream = null;
    let taken = null;
    let open = true;
    const video = element('video', { playsinline: true, autoplay: true, 'aria-label': 'Camera' });
    video.muted = true;
    const words = element('p', { class: 'hint', role: 'status' }, 'Starting the camera\u2026');
    const take = async () => {
      taken = await takeFrame(video);
      dialog.close();
    };
    const shutter = element('button', { type: 'button', class: 'button primary', disabled: true, onclick: take }, icon('camera'), 'Take the picture');
    const onclose = () => {
      open = false;
      for (const track of stream?.getTracks() ?? []) track.stop();
      resolve(taken);
    };
    const dialog = openDialog('Take a photograph', { class: 'camera', onclose }, video, words, element('div', { class: 'dialog-buttons' }, shutter));
    navigator.mediaDevices
      .getUserMedia({ audio: false, video: { facingMode: 'environment', width: { ideal: 1920 }, height: { ideal: 1080 } } })
      .then(async (granted) => {
        stream = granted;
        // Permission may come after the dialog is gone.
        if (!open) return onclose();
        video.srcObject = granted;
        await video.play();
        words.textContent = '';
        shutter.disabled = false;
        shutter.focus();
      })
      .catch((error) => {
        words.textContent = reason(error);
      });
  });
}

function reason(error) {
  if (error.name === 'NotAllowedError') return 'The browser does not let this page use the camera. Its address bar has a setting for that.';
  if (error.name === 'NotFoundError') return 'No camera was found.';
  return 'The camera cannot be used. Another program may be using it.';
}
