// From whatever file, camera or clipboard hands over to a picture that the server takes.

/** What the server decodes; anything else that the browser can show is encoded anew. */
const SENDABLE = ['image/png', 'image/jpeg', 'image/webp', 'image/gif', 'image/bmp'];
/** Pictures up to these sizes are sent byte for byte. No model looks at more than a fraction of it. */
const LONGEST_SIDE = 4096;
const MOST_BYTES = 12 * 1024 * 1024;
const JPEG_QUALITY = 0.92;

/**
 * @typedef {{blob: Blob, name: string, width: number, height: number}} TakenPicture
 */

/** The picture files among what was dropped, pasted or chosen. */
export function pictureFiles(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith('image/'));
}

/**
 * Reads a picture and shrinks it when it is very large.
 * @param {Blob & {name?: string}} file
 * @param {{image_bytes?: number, image_pixels?: number}} limits what the server said it takes
 * @returns {Promise<TakenPicture>}
 * @throws {Error} with a sentence for the person
 */
export async function takePicture(file, limits = {}) {
  const name = file.name || 'picture';
  if (!file.type.startsWith('image/')) throw new Error(`\u201c${name}\u201d is not a picture.`);
  const image = await load(file, name);
  const { naturalWidth: width, naturalHeight: height } = image;
  const mostBytes = Math.min(limits.image_bytes ?? Infinity, MOST_BYTES);
  const mostPixels = Math.min(limits.image_pixels ?? Infinity, LONGEST_SIDE * LONGEST_SIDE);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height), Math.sqrt(mostPixels / (width * height)));
  if (scale === 1 && file.size <= mostBytes && SENDABLE.includes(file.type)) return { blob: file, name, width, height };
  return encode(image, name, scale, mostBytes, file.type !== 'image/jpeg');
}

/** A picture of what a video shows at this moment. */
export async function takeFrame(video) {
  const canvas = draw(video, video.videoWidth, video.videoHeight);
  const blob = await toBlob(canvas, 'image/jpeg');
  return { blob, name: 'photograph.jpg', width: canvas.width, height: canvas.height };
}

/** The picture of a data URL, without `fetch`: the security policy lets the page load from its server only. */
export async function fromDataUrl(url, name) {
  const match = /^data:(image\/[\w.+-]+);base64,(.*)$/s.exec(url);
  if (!match) throw new Error('The picture has no form that this page can show.');
  const bytes = Uint8Array.from(atob(match[2]), (character) => character.charCodeAt(0));
  const blob = new Blob([bytes], { type: match[1] });
  const { naturalWidth, naturalHeight } = await load(blob, name);
  return { blob, name, width: naturalWidth, height: naturalHeight };
}

/** @returns {Promise<string>} */
export function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** An image element with the picture in it, oriented as its EXIF data say. */
async function load(blob, name) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  try {
    image.src = url;
    await image.decode();
  } catch {
    throw new Error(`\u201c${name}\u201d is damaged or of a kind that this browser cannot show.`);
  } finally {
    URL.revokeObjectURL(url);
  }
  // Drawings without a size of their own get a useful one.
  if (!image.naturalWidth) image.width = image.height = 1024;
  return image;
}

async function encode(image, name, scale, mostBytes, lossless) {
  for (let factor = scale; ; factor *= 0.7) {
    const canvas = draw(image, (image.naturalWidth || image.width) * factor, (image.naturalHeight || image.height) * factor);
    // Screenshots stay sharp as PNG while that fits.
    let blob = lossless ? await toBlob(canvas, 'image/png') : null;
    if (!blob || blob.size > mostBytes) blob = await toBlob(canvas, 'image/jpeg');
    if (blob.size <= mostBytes || canvas.width <= 64) return { blob, name, width: canvas.width, height: canvas.height };
  }
}

function draw(source, width, height) {
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  // JPEG has no transparency; white is what paper would show.
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function toBlob(canvas, type) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('The picture is too large for this browser.'))), type, JPEG_QUALITY);
  });
}
