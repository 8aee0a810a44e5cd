// Remembers unfinished uploads in this browser, so that the same file goes on where it stopped.
import { errorsOf, Refused } from "./refused.js";

const MEMORY = "medseg-upload|";

/** @typedef {{ PartNumber: number, Size: number, sha256?: string }} Part */

/**
 * @typedef {object} Upload  As the API says it, and the parts that the server has.
 * @property {string} id
 * @property {string} state
 * @property {number} size  bytes
 * @property {number} part_count
 * @property {number} part_size  bytes
 * @property {Map<number, Part>} arrived
 */

/**
 * What this browser remembers of an unfinished upload of the same file, as the server sees it now; null when there is none.
 * `share` is what of it has arrived, 0 to 1.
 * @param {string} api
 * @param {string} identity
 * @returns {Promise<Upload & { share: number } | null>}
 */
export async function earlierUpload(api, identity) {
  const id = localStorage.getItem(MEMORY + identity);
  if (!id) return null;
  /** @param {string} path */
  const get = (path) => fetch(`${api}${id}/${path}`, { headers: { Accept: "application/json" } });
  const answer = await get("");
  if (answer.status === 404) forgetUpload(identity);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Refused(await errorsOf(answer), answer.status);
  const upload = await answer.json();
  if (["aborted", "used"].includes(upload.state)) return null;
  if (upload.state !== "open") return { ...upload, arrived: new Map(), share: 1 };
  const listed = await get("parts/");
  if (listed.status === 409) forgetUpload(identity); // its parts are gone
  if (listed.status === 409) return null;
  if (!listed.ok) throw new Refused(await errorsOf(listed), listed.status);
  /** @type {{ parts: Part[] }} */
  const { parts } = await listed.json();
  const arrived = new Map(parts.map((part) => [part.PartNumber, part]));
  return { ...upload, arrived, share: parts.reduce((sum, part) => sum + part.Size, 0) / upload.size };
}

/** @param {string} identity */
export function forgetUpload(identity) {
  localStorage.removeItem(MEMORY + identity);
}

/**
 * @param {string} identity
 * @param {string} id
 */
export function rememberUpload(identity, id) {
  localStorage.setItem(MEMORY + identity, id);
}
