/** What mouse, pen and fingers do on a pane: hover, tap, drag a pin, the divider or the picture, pinch, wheel. */

const HOLD = 350; // ms until a resting finger previews
const SLOP = 4; // css pixels that a tap may wander

export class Pointer {
  constructor(pane) {
    this.pane = pane;
    this.held = new Map(); // pointers that are down -> where they are
    this.kind = null; // of the gesture: press, preview, pin, move, swipe, pan, pinch, scroll
    this.former = []; // what was asked before each of the last two taps
    for (const name of ["down", "move", "up", "cancel", "leave"]) this.on(`pointer${name}`, this[name]);
    for (const name of ["contextmenu", "dblclick", "wheel", "touchmove"]) this.on(name, this[name]);
  }

  on(name, act) {
    this.pane.canvas.addEventListener(name, (event) => this.pane.pack && act.call(this, event), { passive: false });
  }

  down(event) {
    const { pane, held } = this;
    if (event.button > 0) return;
    pane.canvas.setPointerCapture(event.pointerId);
    const place = (this.start = pane.place(event));
    held.set(event.pointerId, place);
    clearTimeout(this.timer);
    this.pin = pane.pinAt(place);
    this.kind = held.size > 1 ? "pinch" : pane.onDivider(place) ? "swipe" : this.pin ? "pin" : "press";
    if (this.kind !== "press" || event.pointerType !== "touch") return;
    this.timer = setTimeout(() => {
      this.kind = "preview";
      pane.hover(place, true);
    }, HOLD);
  }

  move(event) {
    const { pane, held } = this;
    const place = pane.place(event), last = held.get(event.pointerId);
    if (!last) return event.pointerType !== "touch" && pane.hover(place);
    held.set(event.pointerId, place);
    if (distance(place, this.start) > SLOP) this.wander(event.pointerType === "touch");
    if (this.kind === "pinch" && held.size === 2) {
      const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      pane.zoom(distance(place, other) / (distance(last, other) || 1), middle(last, other), middle(place, other));
    } else if (this.kind === "pan") pane.zoom(1, last, place);
    else if (this.kind === "swipe") pane.moveDivider(place);
    else if (this.kind === "move") this.pin = pane.movePin(this.pin, place);
    else if (this.kind === "preview") pane.hover(place, true);
    else if (this.kind === "press") pane.hover(place);
  }

  /** A pointer that went further than a tap may. */
  wander(touch) {
    if (this.kind === "pin") this.kind = "move";
    if (this.kind !== "press") return;
    clearTimeout(this.timer);
    if (this.pane.camera.zoom > 1) this.kind = "pan";
    else if (touch) this.kind = "scroll"; // the page's own; a mouse pins where it lets go
  }

  up(event) {
    const { pane, held, kind } = this;
    if (held.has(event.pointerId) && (kind === "press" || kind === "pin")) {
      this.former = [this.former.at(-1), pane.view.get("queries")];
      pane.ask(pane.place(event), event.altKey ? "subtract" : event.shiftKey ? "add" : "pin");
    }
    this.cancel(event);
  }

  cancel(event) {
    const { pane, held } = this;
    if (!held.delete(event.pointerId)) return;
    clearTimeout(this.timer);
    if (this.kind === "move") pane.dropPin();
    if (this.kind === "swipe") pane.dropDivider();
    if (!held.size) this.kind = null; // a finger that is left after a pinch does nothing
    if (event.pointerType === "touch") pane.hover(null);
  }

  leave() {
    if (!this.held.size) this.pane.hover(null);
  }

  /** The right button; a long press of a finger comes here too, and has another number. */
  contextmenu(event) {
    event.preventDefault();
    if (event.button === 2) this.pane.ask(this.pane.place(event), "subtract");
  }

  /** The whole picture again, and what its two taps did to the pins undone. */
  dblclick() {
    const { pane } = this;
    if (this.former[0]) pane.view.set("queries", this.former[0]);
    pane.wholePicture();
  }

  wheel(event) {
    const by = event.deltaY * (event.deltaMode ? 30 : 1); // some browsers count lines
    if (this.pane.camera.zoom === 1 && by >= 0) return; // leaves the page its scrolling
    event.preventDefault();
    this.pane.zoom(Math.exp(-by * (event.ctrlKey ? 0.01 : 0.002)), this.pane.place(event));
  }

  /** Keeps the page from scrolling while a finger does something here. */
  touchmove(event) {
    if (!["scroll", "press", null].includes(this.kind) && event.cancelable) event.preventDefault();
  }
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
