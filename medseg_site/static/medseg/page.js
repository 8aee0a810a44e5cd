// Finds what the templates promise to the modules. What is missing is named at once, not where it is used.

/**
 * The first element in `root` that `selector` names. Throws an Error where there is none, or one of another type.
 * @template {Element} T
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => T} type
 */
export function find(root, selector, type) {
  const element = root.querySelector(selector);
  if (!(element instanceof type)) throw new Error(`The page has no ${type.name} ${selector}.`);
  return element;
}

/**
 * The value of an attribute. Throws an Error where the element has none.
 * @param {Element} element
 * @param {string} name
 */
export function attribute(element, name) {
  const value = element.getAttribute(name);
  if (value === null) throw new Error(`The page has an element without ${name}.`);
  return value;
}

/**
 * What Django's filter json_script wrote into the page under this id.
 * @param {string} id
 */
export function readJson(id) {
  return JSON.parse(find(document, `#${id}`, HTMLScriptElement).text);
}

/**
 * The text of what was thrown.
 * @param {unknown} error
 */
export function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
