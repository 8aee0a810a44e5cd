// What the server or the store will not take.

/** @typedef {{ attr: string | null, detail: string, code?: string }} Problem  As the API says it. */

/** Carries the server's own words. */
export class Refused extends Error {
  /**
   * @param {Problem[]} errors
   * @param {number} status  of the answer; 0 where nothing was asked
   */
  constructor(errors, status) {
    super(errors[0].detail);
    this.errors = errors;
    this.status = status;
  }
}

/**
 * The problems that an answer tells of, at least one.
 * @param {Response} answer
 * @returns {Promise<Problem[]>}
 */
export async function errorsOf(answer) {
  const document = await answer.json().catch(() => null);
  return document?.errors || [{ attr: null, detail: `The server answered with status ${answer.status}. Try again.` }];
}
