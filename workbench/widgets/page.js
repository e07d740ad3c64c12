/** Elements of the similarity view, and how they look. */

export const COLORS = { query: "#e53935", negative: "#4285f4", match: "#ffd60a", chosen: "#ff9800", hover: "#fff" };

/** An element with properties, of which role and those with a hyphen are attributes, and children. */
export function make(tag, properties = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Sets the properties that changed: an equal text set anew would cost a layout. */
export function update(element, properties) {
  for (const [name, value] of Object.entries(properties)) if (element[name] !== value) element[name] = value;
}

/** Brings the style to where the view stands: the page, or a shadow root. */
export function style(root) {
  const place = root === document || !root.host ? document.head : root;
  if (place.querySelector("style[data-gramscope=similarity]")) return;
  const sheet = make("style", { textContent: STYLE });
  sheet.dataset.gramscope = "similarity";
  place.append(sheet);
}

const STYLE = `
.gs-view { color-scheme: light dark; --gs-soft: light-dark(#6b7280, #9ca3af); --gs-line: light-dark(#d1d5db, #4b5563); --gs-back: light-dark(#f3f4f6, #1f2937);
  color: light-dark(#1f2937, #e5e7eb); font: 13px/1.4 system-ui, -apple-system, "Segoe UI", sans-serif; font-variant-numeric: tabular-nums;
  &:fullscreen { background: light-dark(#fff, #111827); overflow: auto; padding: 12px; box-sizing: border-box; }
  [hidden] { display: none !important; }
  :focus-visible { outline: 2px solid light-dark(#2563eb, #60a5fa); outline-offset: 1px; }
  p { margin: 0; }
  figure { margin: 0 auto; min-width: 0; width: min(100%, max(480px, 64vh * var(--gs-aspect, 1))); }
  figcaption, .gs-bar label, .gs-numbers, .gs-legend label, .gs-note, details { color: var(--gs-soft); }
  input[type=checkbox] { appearance: auto !important; background: none !important; accent-color: #2563eb; width: 14px; height: 14px; }
  select, button, input:not([type]) { appearance: auto; font: inherit; color: light-dark(#1f2937, #e5e7eb); background: light-dark(#fff, #111827); border: 1px solid var(--gs-line); border-radius: 4px; padding: 2px 6px; max-width: 15em; }
  button:hover { background: var(--gs-back); }
  .gs-panes { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, max(260px, 100% / var(--gs-columns) - 14px)), 1fr)); }
  figcaption { display: flex; gap: 8px; justify-content: space-between; align-items: center; margin-bottom: 4px; }
  figcaption select { flex: 0 1 auto; min-width: 6em; max-width: 48%; }
  figcaption span { flex: 1 1 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  .gs-stage { position: relative; width: min(100%, 64vh * var(--gs-aspect, 1)); margin: 0 auto; aspect-ratio: var(--gs-aspect, 1); background: var(--gs-back); }
  &:fullscreen figure { width: 100%; }
  &:fullscreen .gs-stage { width: 100%; aspect-ratio: auto; height: 68vh; }
  .gs-stage canvas { display: block; width: 100%; height: 100%; cursor: crosshair; touch-action: pan-y; outline-offset: 2px; }
  .gs-status { position: absolute; inset: auto 8px 8px; padding: 6px 10px; background: #7f1d1d; color: #fff; border-radius: 4px; overflow-wrap: anywhere; }
  .gs-read { margin: 4px 0; min-height: 2.8em; }
  .gs-legend { display: grid; gap: 2px; font-size: 12px; }
  .gs-gradient { height: 8px; border-radius: 4px; }
  .gs-numbers { display: flex; justify-content: space-between; }
  .gs-histogram { width: 100%; height: 44px; }
  .gs-legend input[type=range] { appearance: none; width: calc(100% + 12px); height: 12px; margin: 0 -6px; background: linear-gradient(var(--gs-line) 0 0) center / 100% 2px no-repeat; }
  .gs-legend input[type=range]::-webkit-slider-thumb { appearance: none; width: 12px; height: 12px; border-radius: 50%; background: ${COLORS.query}; }
  .gs-legend input[type=range]::-moz-range-thumb { width: 12px; height: 12px; border: 0; border-radius: 50%; background: ${COLORS.query}; }
  .gs-legend .gs-off { filter: grayscale(1) opacity(.6); }
  label { display: flex; gap: 6px; align-items: center; white-space: nowrap; }
  ol { margin: 4px 0 0; padding: 0; list-style: none; counter-reset: match; display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 0 12px; font-size: 12px; }
  li { counter-increment: match; border-bottom: 1px solid var(--gs-line); padding: 1px 0; }
  li::before { content: counter(match) "  "; font-weight: 600; white-space: pre; }
  .gs-bar { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin-top: 10px; padding-top: 8px; border-top: 1px solid var(--gs-line); }
  .gs-bar input[type=range] { width: 90px; accent-color: #2563eb; }
  details[open] { flex-basis: 100%; }
  .gs-note { font-size: 12px; margin-top: 6px; overflow-wrap: anywhere; }
  &.gs-time figcaption select { display: none; }
  &.gs-time { container-type: inline-size; }
  &.gs-time > .gs-bar { margin: 0 0 10px; padding: 0 0 8px; border: 0; border-bottom: 1px solid var(--gs-line); }
  &.gs-gram > .gs-bar { margin: 0 0 10px; padding: 0 0 8px; border: 0; border-bottom: 1px solid var(--gs-line); }
  .gs-changes li { cursor: default; }
  .gs-dial > div { flex-basis: 100%; }
  .gs-dial table { font-size: 12px; border-collapse: collapse; }
  .gs-dial td { padding: 1px 14px 1px 0; }
  .gs-dial td:not(:first-child) { text-align: right; }
  .gs-time-body { display: grid; gap: 0 20px; grid-template: "head" auto "map" auto "curves" auto / minmax(0, 1fr); }
  .gs-time-body > :first-child { grid-area: head; }
  .gs-time-body > :nth-child(2) { grid-area: map; }
  .gs-time-body > :last-child { grid-area: curves; align-content: start; }
  @container (min-width: 880px) {
    .gs-time-body:not(.gs-wide) { grid-template: "map head" auto "map curves" 1fr / minmax(0, 1fr) minmax(0, 1fr); }
    .gs-time-body:not(.gs-wide) > .gs-ribbon { grid-template-columns: minmax(6em, 15em) minmax(100px, 1fr) 6em; }
  }
  .gs-gap { flex: 1; }
  .gs-ribbon { display: grid; grid-template-columns: minmax(6em, 15em) minmax(100px, 1fr) 8em; gap: 0 12px; align-items: center; }
  .gs-ribbon > div { position: relative; min-width: 0; }
  .gs-ribbon input[type=range] { width: 100%; margin: 0; accent-color: #2563eb; }
  .gs-ticks { position: relative; height: 1.5em; font-size: 11px; color: var(--gs-soft); }
  .gs-ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
  .gs-place { font-weight: 600; text-align: right; line-height: 1.25; white-space: pre-line; overflow-wrap: anywhere; }
  .gs-value { text-align: right; font-size: 12px; }
  .gs-group { grid-column: 1 / -1; color: var(--gs-soft); font-size: 11px; margin-top: 6px; border-top: 1px solid var(--gs-line); padding-top: 4px; }
  .gs-ribbon label { font-size: 12px; white-space: normal; line-height: 1.2; }
  .gs-ribbon small { color: var(--gs-soft); }
  .gs-curve { height: 34px; padding: 0 8px; cursor: col-resize; touch-action: none; }
  .gs-curve svg { display: block; width: 100%; height: 100%; overflow: visible; }
  .gs-curve polyline { fill: none; stroke: light-dark(#2563eb, #60a5fa); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
  .gs-curve polyline.gs-bad { stroke: light-dark(#c2410c, #fb923c); stroke-width: 2.5; }
  .gs-curve polygon { fill: light-dark(#2563eb, #60a5fa); opacity: .14; }
  .gs-curve i { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px solid ${COLORS.query}; }
  .gs-curve i.gs-other { border-left: 1px dashed var(--gs-soft); }
  &.gs-card { border: 1px solid var(--gs-line); border-radius: 8px; padding: 12px 14px; max-width: 720px; --gs-tone: light-dark(#6b7280, #9ca3af); }
  &.gs-card button:disabled, &.gs-card select:disabled { opacity: 0.45; cursor: default; }
  &.gs-card.gs-live { --gs-tone: light-dark(#2563eb, #60a5fa); }
  &.gs-card.gs-bad { --gs-tone: light-dark(#b91c1c, #f87171); }
  .gs-head { display: flex; justify-content: space-between; gap: 12px; align-items: baseline; font-size: 15px; }
  .gs-state { color: var(--gs-tone); font-weight: 600; font-size: 13px; }
  .gs-progress { height: 6px; border-radius: 3px; background: var(--gs-back); overflow: hidden; margin-top: 8px; }
  .gs-progress i { display: block; height: 100%; background: var(--gs-tone); }
  .gs-keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; color: var(--gs-soft); margin-top: 8px; }
  .gs-keys i { display: inline-block; width: 10px; height: 3px; border-radius: 2px; margin-right: 5px; vertical-align: middle; }
  .gs-chart svg { display: block; width: 100%; height: 120px; }
  .gs-chart polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
  .gs-when { margin-top: 8px; font-size: 12px; color: var(--gs-soft); }
  .gs-when input { flex: 1; accent-color: #2563eb; }
  .gs-maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)); gap: 8px; margin-top: 6px; }
  .gs-maps img { width: 100%; image-rendering: pixelated; border-radius: 2px; background: var(--gs-back); }
  .gs-log { font: 11px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0 0; }
  &.gs-video-view > .gs-tools { margin: 0 0 10px; padding: 0 0 8px; border: 0; border-bottom: 1px solid var(--gs-line); }
  [role=radiogroup] { display: inline-flex; gap: 4px; }
  button[role=radio][aria-checked=true] { outline: 2px solid light-dark(#2563eb, #60a5fa); outline-offset: 1px; }
  .gs-objects button { border-left: 10px solid var(--gs-object); min-width: 2.4em; }
  .gs-main { touch-action: none !important; }
  .gs-line { margin-top: 10px; grid-template-columns: auto minmax(100px, 1fr) 5em; }
  .gs-line .gs-ticks { height: 8px; }
  .gs-ticks i { position: absolute; top: 0; height: 8px; border-left: 2px solid light-dark(#c2410c, #fb923c); margin-left: -1px; }
  .gs-follow:not(:disabled) { font-weight: 600; color: #fff; background: #2563eb; border-color: #2563eb; }
  button:disabled { opacity: .45; }
  &.gs-video-view details { margin-top: 4px; & .gs-bar { margin: 4px 0; padding: 0; border: 0; } }
  &.gs-video-view { --gs-tone: light-dark(#2563eb, #60a5fa); }
  &.gs-ask > .gs-asking { margin: 0 0 10px; padding: 0 0 8px; border: 0; border-bottom: 1px solid var(--gs-line); }
  .gs-text { flex: 1 1 220px; max-width: 32em !important; font: inherit; color: inherit; background: light-dark(#fff, #111827); border: 1px solid var(--gs-line); border-radius: 4px; padding: 5px 8px; }
  button.gs-go:not(:disabled) { font-weight: 600; color: #fff; background: #2563eb; border-color: #2563eb; }
  .gs-told { color: var(--gs-soft); }
  .gs-asked { display: grid; gap: 14px 20px; grid-template-columns: minmax(0, 3fr) minmax(min(100%, 260px), 2fr); }
  @media (max-width: 720px) { .gs-asked { grid-template-columns: minmax(0, 1fr); } }
  .gs-asked figure { width: 100%; }
  .gs-phrases { display: grid; }
  .gs-phrase { display: grid; gap: 2px 8px; align-items: center; border-bottom: 1px solid var(--gs-line); padding: 5px 0;
    grid-template-areas: "name buttons away" "part value value"; grid-template-columns: minmax(0, 1fr) auto 1.8em; }
  .gs-name { grid-area: name; text-align: left; border-left: 10px solid var(--gs-object); max-width: none; overflow-wrap: anywhere; white-space: normal; }
  .gs-role { grid-area: buttons; font-size: 12px; color: var(--gs-soft); }
  .gs-away { grid-area: away; padding: 2px 4px; }
  .gs-part { grid-area: part; height: 6px; border-radius: 3px; background: var(--gs-back); overflow: hidden; & i { display: block; height: 100%; } }
  .gs-phrase output { grid-area: value; font-size: 12px; text-align: right; min-width: 8em; }
  .gs-words span { border-radius: 3px; padding: 1px 3px; background: color-mix(in srgb, light-dark(#f59e0b, #d97706) var(--gs-worth), transparent); }
  .gs-words small { color: var(--gs-soft); margin-left: 2px; }
  .gs-ranked { display: flex; gap: 8px; overflow-x: auto; padding: 12px 3px 4px; }
  .gs-ranked button { flex: 0 0 auto; display: grid; gap: 3px; padding: 4px; max-width: none; font-size: 12px; }
  .gs-ranked img { height: 76px; display: block; border-radius: 2px; }
  .gs-votes { display: flex; flex-wrap: wrap; gap: 8px; min-height: 24px; }
  .gs-votes figure { width: 150px; margin: 0; }
  .gs-votes canvas { width: 150px; display: block; border-radius: 2px; }
  .gs-votes figcaption { font-size: 12px; margin: 2px 0 0; }
  .gs-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  @media (prefers-reduced-motion: no-preference) { button { transition: background-color .12s; } }
}
.dark .gs-view, .vscode-dark .gs-view, [data-jp-theme-light="false"] .gs-view { color-scheme: dark; }
[data-jp-theme-light="true"] .gs-view, .vscode-light .gs-view, .gradio-container:not(.dark *) .gs-view { color-scheme: light; }
`;
