// A ZIP of several files, made in the browser without compression. The files' bytes stay on disk: the result refers to them.
const MAX_BYTES = 0xffffffff;

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

/** @param {Blob} file */
async function crc32(file) {
  let crc = 0xffffffff;
  const reader = file.stream().getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return (crc ^ 0xffffffff) >>> 0;
    for (const byte of value) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  }
}

/** @typedef {[size: 2 | 4, value: number]} Field  Bytes of a number, little-endian, and the number. */

/** @param {Field[]} fields */
function record(fields) {
  const bytes = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) bytes.setUint16(at, value, true);
    else bytes.setUint32(at, value, true);
    at += size;
  }
  return bytes.buffer;
}

/**
 * Blob of a ZIP with these files. Two files of one name get a number. Throws when it would be over 4 GB.
 * @param {File[]} files
 */
export async function zipOf(files) {
  const parts = [];
  /** @type {(ArrayBuffer | Uint8Array<ArrayBuffer>)[]} */
  const directory = [];
  const used = new Set();
  let offset = 0;
  for (const [index, file] of files.entries()) {
    const unique = used.has(file.name) ? `${index + 1}_${file.name}` : file.name;
    used.add(unique);
    const name = new TextEncoder().encode(unique);
    // Version 2.0, UTF-8 names (bit 11), stored, 1980-01-01.
    /** @type {Field[]} */
    const common = [
      [2, 20],
      [2, 0x800],
      [2, 0],
      [2, 0],
      [2, 0x21],
      [4, await crc32(file)],
      [4, file.size],
      [4, file.size],
      [2, name.length],
      [2, 0],
    ];
    const local = record([[4, 0x04034b50], ...common]);
    directory.push(record([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), name);
    parts.push(local, name, file);
    offset += local.byteLength + name.length + file.size;
    if (offset > MAX_BYTES) throw new Error("Together the images are over 4 GB. Choose fewer, or upload a ZIP file.");
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = record([
    [4, 0x06054b50],
    [2, 0],
    [2, 0],
    [2, files.length],
    [2, files.length],
    [4, size],
    [4, offset],
    [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/**
 * True when the file ends as a ZIP does: known before gigabytes are sent.
 * @param {Blob} file
 */
export async function endsAsZip(file) {
  const tail = new Uint8Array(await file.slice(Math.max(0, file.size - 65557)).arrayBuffer());
  for (let at = tail.length - 22; at >= 0; at--) {
    if (tail[at] === 0x50 && tail[at + 1] === 0x4b && tail[at + 2] === 5 && tail[at + 3] === 6) return true;
  }
  return false;
}
