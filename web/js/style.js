// SPDX-License-Identifier: GPL-3.0-or-later
/** How the panels look. Surfaces and letters take the theme's colours; only four tones are ours. */

const CSS = `
.safegen-panel { box-sizing: border-box; overflow: hidden; }
.safegen-card {
  --tone: #8b8f98;
  --soft: color-mix(in srgb, var(--input-text) 68%, transparent);
  box-sizing: border-box; padding: 7px 10px 8px; border-radius: 8px;
  border: 1px solid color-mix(in srgb, var(--tone) 45%, transparent);
  border-left: 4px solid var(--tone);
  background: var(--component-node-widget-background, var(--comfy-input-bg)); color: var(--input-text);
  font: 12px/1.4 system-ui, sans-serif; text-align: left; overflow-wrap: anywhere; cursor: default;
}
.safegen-card[data-tone=green] { --tone: #35a863; }
.safegen-card[data-tone=amber] { --tone: #d9941a; }
.safegen-card[data-tone=red] { --tone: #dd4b46; }
.safegen-card.waiting { color: var(--soft); padding-block: 4px; }
.safegen-head { display: flex; align-items: center; gap: 7px; font-weight: 600; font-size: 13px; }
.safegen-head .word::first-letter { text-transform: uppercase; }
.safegen-head .aside { margin-left: auto; font-weight: 400; font-size: 11px; color: var(--soft); white-space: nowrap; }
.safegen-dot {
  flex: none; display: inline-grid; place-items: center; width: 17px; height: 17px; border-radius: 50%;
  background: var(--tone); color: #fff; font: 700 11px/1 system-ui, sans-serif;
}
.safegen-line { margin-top: 4px; }
.safegen-line.strong { font-weight: 600; }
.safegen-line.soft { color: var(--soft); }
.safegen-line.note { color: color-mix(in srgb, #d9941a 62%, var(--input-text)); }
.safegen-facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 1px 10px; margin: 6px 0 0; font-size: 11px; }
.safegen-facts dt { color: var(--soft); }
.safegen-facts dd { margin: 0; }
.safegen-cut { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; min-width: 0; }
.safegen-pictures {
  list-style: none; margin: 6px 0 0; padding: 0; max-height: 142px; overflow-y: auto; font-size: 11px;
}
.safegen-pictures li { display: flex; gap: 7px; align-items: center; height: 19px; }
.safegen-pictures .number { min-width: 2.2em; color: var(--soft); }
.safegen-pictures .safegen-dot { width: 13px; height: 13px; font-size: 13px; background: none; color: var(--tone); }
.safegen-pictures li[data-tone=green] { --tone: #35a863; }
.safegen-pictures li[data-tone=amber] { --tone: #d9941a; }
.safegen-pictures li[data-tone=red] { --tone: #dd4b46; }
.safegen-pictures .left, .safegen-pictures .score { flex: none; white-space: nowrap; }
.safegen-pictures .found { margin-left: auto; color: var(--soft); }
.safegen-pictures .score { font-variant-numeric: tabular-nums; }
.safegen-report { display: flex; align-items: center; gap: 10px; margin-top: 8px; font-size: 11px; flex-wrap: wrap; }
.safegen-report button {
  padding: 3px 10px; border-radius: 6px; border: 1px solid var(--border-color); cursor: pointer;
  background: var(--comfy-menu-bg); color: var(--input-text); font: inherit;
}
.safegen-report button:hover { border-color: var(--input-text); }
.safegen-report label { display: flex; align-items: center; gap: 5px; cursor: pointer; color: var(--soft); }
.safegen-report input { margin: 0; accent-color: var(--input-text); }
.safegen-report textarea { flex-basis: 100%; height: 70px; font: 10px/1.3 monospace; }
`;

/** Put the rules into the page, once. */
export function dress() {
  if (document.getElementById("safegen-style")) return;
  const style = document.createElement("style");
  style.id = "safegen-style";
  style.textContent = CSS;
  document.head.append(style);
}

/** `make("p.safegen-line.note", "text", child)`: an element with classes, texts and children. */
export function make(tag, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.className = classes.join(" ");
  element.append(...children);
  return element;
}

/** One line that is cut with dots where the node is narrow, and whole in its tooltip. */
export function cut(tag, text) {
  const element = make(`${tag}.safegen-cut`, text);
  element.title = text;
  return element;
}
