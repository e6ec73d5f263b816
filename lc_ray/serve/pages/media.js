/** Pictures and sounds: chosen, dropped or recorded, previewed, and made small enough to be sent. */
const LARGE = 600_000; // bytes, of which base64 makes a third more: an endpoint takes bodies of 1 MiB unless told otherwise
const SIDE = 1280; // pixels
const RATE = 16_000; // samples per second
const READABLE = /wav|flac|ogg|mpeg|mp3/; // what endpoints decode, of what browsers have

/** A control for one file. `value()` is a data URI, or undefined if none is there. */
function media(kind, id) {
  const word = kind === "image" ? "picture" : "sound";
  let uri;
  const drop = el("div", { className: "drop" });
  const input = el("input", { type: "file", id, accept: `${kind}/*`, className: "away", onchange: () => take(input.files[0]) });
  const note = el("small", { role: "status" });

  const offer = () => {
    uri = undefined;
    input.value = "";
    drop.classList.remove("full");
    drop.replaceChildren(
      el("div", { className: "row" }, input, el("label", { className: "button", htmlFor: id }, `Choose a ${word}`), kind === "audio" ? recorder(take) : null),
      el("small", {}, `or drop it here`), note);
  };

  async function take(file) {
    if (!file) return;
    note.textContent = "";
    try {
      const { blob, told } = await (kind === "image" ? smaller(file) : plainer(file));
      uri = await dataUri(blob);
      const shown = kind === "image" ? el("img", { src: uri, alt: `The ${word} that will be sent` }) : el("audio", { controls: true, src: uri });
      shown.addEventListener("error", () => shown.replaceWith(el("small", {}, "no preview")));
      const remove = el("button", { type: "button", className: "plain", onclick: () => { offer(); input.focus(); } }, `Remove the ${word}`);
      drop.classList.add("full");
      drop.replaceChildren(shown, el("div", { className: "row" }, el("small", {}, [file.name, told].filter(Boolean).join(" · ")), remove));
    } catch (error) {
      offer();
      note.textContent = `This file can't be used: ${error.message}`;
    }
  }

  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", over);
      if (name === "drop") take(event.dataTransfer.files[0]);
    });
  }
  offer();
  return { element: drop, focus: input, value: () => uri };
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A large picture as a JPEG of fewer pixels. One that the browser can't read is left to the endpoint. */
async function smaller(file) {
  if (file.size <= LARGE) return { blob: file };
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return { blob: file };
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  return { blob, told: `sent as a JPEG of ${canvas.width} × ${canvas.height}` };
}

/** A sound that is large, or of a format that endpoints can't decode, as WAV of one channel. */
async function plainer(file) {
  if (file.size <= LARGE && READABLE.test(file.type)) return { blob: file };
  const heard = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer()).catch(() => null);
  if (!heard) return { blob: file };
  const context = new OfflineAudioContext(1, Math.ceil(heard.duration * RATE), RATE);
  const source = context.createBufferSource();
  source.buffer = heard;
  source.connect(context.destination);
  source.start();
  const samples = (await context.startRendering()).getChannelData(0);
  return { blob: wav(samples), told: `sent as WAV, ${heard.duration.toFixed(1)} s` };
}

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of what follows up to "data": PCM, 1 channel, rate, bytes per second, per frame, bits
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

/** A button that records, and gives the recording to `take`. Browsers have no microphone for pages that are neither local nor HTTPS. */
function recorder(take) {
  if (!navigator.mediaDevices) return null;
  let recording = null;
  const button = el("button", { type: "button", onclick: toggle }, "Record");
  async function toggle() {
    if (recording) {
      recording.stop();
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch {
      button.textContent = "No microphone";
      button.disabled = true;
      return;
    }
    const parts = [];
    recording = new MediaRecorder(stream);
    recording.ondataavailable = (event) => parts.push(event.data);
    recording.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      const file = new File(parts, "recording", { type: recording.mimeType });
      recording = null;
      button.classList.remove("recording");
      button.textContent = "Record";
      take(file);
    };
    recording.start();
    button.classList.add("recording");
    button.textContent = "Stop";
  }
  return button;
}
