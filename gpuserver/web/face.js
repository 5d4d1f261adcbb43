/** The tutor's face: a drawing that listens, thinks and speaks, with a mouth that follows the speech. */

import { SHAPES, mix, mouthAt, mouthFor } from './mouth.js';

const SVG = 'http://www.w3.org/2000/svg';
/** The mouth goes to its next shape with this time constant, so that no frame jumps. */
const EASE_MS = 26;
const BLINK_MS = 140;
const LOOKS = 6;
let drawn = 0;

/**
 * Draws a tutor's face, still. The colours come from classroom.css; each tutor has a look.
 * @param {number} tutorId
 * @returns {SVGSVGElement}
 */
export function drawFace(tutorId) {
  const id = `face${++drawn}`;
  const svg = element('svg', { viewBox: '0 0 240 240', class: 'face', 'data-look': tutorId % LOOKS });
  svg.append(clips(id), backdrop(), body(id), head(id));
  placeMouth(svg, SHAPES.sil);
  return svg;
}

export class Face {
  #place;
  #svg = null;
  #player;
  #marks = { turnId: null, list: [] };
  #shape = SHAPES.sil;
  #frame = 0;
  #last = 0;
  #still = matchMedia('(prefers-reduced-motion: reduce)');

  /**
   * @param {HTMLElement} place where the drawing goes
   * @param {import('./player.js').Player} player the clock
   */
  constructor(place, player) {
    this.#place = place;
    this.#player = player;
    player.addEventListener('started', () => this.#wake());
    this.#blinkLater();
  }

  /** Draws a tutor. @param {number} tutorId */
  draw(tutorId) {
    this.#svg = drawFace(tutorId);
    this.#place.replaceChildren(this.#svg);
  }

  /** What the face shows: `idle`, `listening`, `hearing`, `thinking`, `speaking` or `offline`. @param {string} mood */
  set mood(mood) {
    if (this.#svg) this.#svg.dataset.mood = mood;
  }

  /** More of a turn's visemes; those of earlier turns are done with. @param {string} turnId @param {{ms: number, viseme: string}[]} marks */
  add(turnId, marks) {
    if (this.#marks.turnId !== turnId) this.#marks = { turnId, list: [] };
    this.#marks.list.push(...marks);
  }

  /** The mouth as it is drawn now. @returns {import('./mouth.js').Shape} */
  get mouth() {
    return this.#shape;
  }

  #wake() {
    if (this.#frame) return;
    this.#last = performance.now();
    this.#frame = requestAnimationFrame((now) => this.#tick(now));
  }

  #tick(now) {
    const target = this.#target();
    const part = 1 - Math.exp(-Math.max(0, now - this.#last) / EASE_MS);
    this.#last = now;
    this.#shape = mix(this.#shape, target, part);
    const settled = !this.#player.playing && Math.abs(this.#shape.open - target.open) < 0.004;
    if (settled) this.#shape = SHAPES.sil;
    placeMouth(this.#svg, this.#shape);
    this.#frame = settled ? 0 : requestAnimationFrame((next) => this.#tick(next));
  }

  #target() {
    const heard = this.#player.muted ? null : this.#player.position();
    if (!heard) return SHAPES.sil;
    const { turnId, list } = this.#marks;
    return turnId === heard.turnId ? mouthAt(list, heard.ms) : mouthFor(this.#player.peak());
  }

  #blinkLater() {
    setTimeout(() => {
      if (this.#svg && !this.#still.matches) this.#blink(this.#svg);
      this.#blinkLater();
    }, 2200 + Math.random() * 3600);
  }

  #blink(svg) {
    svg.classList.add('blink');
    setTimeout(() => svg.classList.remove('blink'), BLINK_MS);
  }
}

/** Moves the mouth's parts to a shape. Its middle is the origin. */
function placeMouth(svg, { open, width, round, smile, teeth, tongue }) {
  const half = 8 + width * 20;
  const corner = -smile * 5 * (1 - round);
  const bend = half * (0.5 + round * 0.42);
  const low = corner + smile * 9 * (1 - round) + open * 34;
  const high = corner + smile * 9 * (1 - round) - open * (13 + round * 6);
  const lips = `M${-half} ${corner}C${-bend} ${high} ${bend} ${high} ${half} ${corner}C${bend} ${low} ${-bend} ${low} ${-half} ${corner}Z`;
  for (const part of svg.querySelectorAll('[data-part=lips]')) part.setAttribute('d', lips);
  const top = corner * 0.25 + high * 0.75;
  const bottom = corner * 0.25 + low * 0.75;
  const gap = bottom - top;
  set(svg, 'teeth', { x: -half, width: half * 2, y: top - 4, height: 4 + (1.5 + Math.min(7, gap * 0.5)) * teeth });
  set(svg, 'tongue', { cy: bottom + 5 - gap * 0.34 * tongue, rx: half * 0.62, ry: 5 + gap * 0.16 });
  svg.querySelector('[data-part=inside]').classList.toggle('closed', open < 0.03);
}

function set(svg, part, attributes) {
  const target = svg.querySelector(`[data-part=${part}]`);
  for (const [name, value] of Object.entries(attributes)) target.setAttribute(name, value);
}

function clips(id) {
  const round = element('clipPath', { id: `${id}-round` }, [element('circle', { cx: 120, cy: 120, r: 112 })]);
  const mouth = element('clipPath', { id: `${id}-mouth` }, [path('', { 'data-part': 'lips' })]);
  return element('defs', {}, [round, mouth]);
}

function backdrop() {
  return element('g', {}, [
    element('circle', { class: 'halo', cx: 120, cy: 120, r: 114 }),
    element('circle', { class: 'backdrop', cx: 120, cy: 120, r: 112 }),
  ]);
}

function body(id) {
  const parts = [
    path('M24 240C26 206 62 192 94 187L146 187C178 192 214 206 216 240Z', { class: 'shirt' }),
    path('M90 188L120 214L150 188L158 194L136 226L120 214L104 226L82 194Z', { class: 'collar' }),
    path('M99 160H141V188C141 200 99 200 99 188Z', { class: 'skin' }),
    path('M99 172C108 184 132 184 141 172V180C132 192 108 192 99 180Z', { class: 'shade' }),
  ];
  return element('g', { class: 'sway', 'clip-path': `url(#${id}-round)` }, parts);
}

function head(id) {
  const parts = [
    path('M62 112C54 52 88 34 122 34C160 34 188 56 178 116C182 138 180 152 175 161C171 168 164 171 156 171L84 171C76 171 69 168 66 161C60 150 59 134 62 112Z', { class: 'hair back' }),
    element('ellipse', { class: 'skin', cx: 67, cy: 122, rx: 9, ry: 13 }),
    element('ellipse', { class: 'skin', cx: 173, cy: 122, rx: 9, ry: 13 }),
    path('M68 104C68 66 90 52 120 52C150 52 172 66 172 104C172 148 152 178 120 178C88 178 68 148 68 104Z', { class: 'skin' }),
    element('ellipse', { class: 'cheek', cx: 86, cy: 139, rx: 11, ry: 7.5 }),
    element('ellipse', { class: 'cheek', cx: 154, cy: 139, rx: 11, ry: 7.5 }),
    path('M64 112C58 58 92 36 124 38C160 40 182 66 176 112C170 96 164 84 152 74C134 88 100 92 82 86C72 92 66 102 64 112Z', { class: 'hair' }),
    path('M92 58C104 48 124 46 138 50', { class: 'shine' }),
    eyes(),
    path('M118 124C116 131 115 134 119 136.5C121 137.5 123 137 124 136', { class: 'nose' }),
    mouth(id),
  ];
  return element('g', { class: 'head' }, parts);
}

function eyes() {
  const eye = (x) =>
    element('g', { class: 'eye' }, [
      element('ellipse', { class: 'iris', cx: x, cy: 116, rx: 6.6, ry: 8.2 }),
      element('circle', { class: 'glint', cx: x + 2.4, cy: 112.6, r: 2.3 }),
    ]);
  const brows = element('g', { class: 'brows' }, [
    path('M83 98C89 93 98 92.5 104 95', { class: 'brow' }),
    path('M136 95C142 92.5 151 93 157 98', { class: 'brow' }),
  ]);
  const glasses = element('g', { class: 'glasses' }, [
    element('circle', { cx: 94, cy: 117, r: 17.5 }),
    element('circle', { cx: 146, cy: 117, r: 17.5 }),
    path('M111.5 115C116 111.5 124 111.5 128.5 115M76.5 114L69 111M163.5 114L171 111', {}),
  ]);
  return element('g', {}, [brows, element('g', { class: 'eyes' }, [eye(94), eye(146)]), glasses]);
}

function mouth(id) {
  const inside = element('g', { 'data-part': 'inside', 'clip-path': `url(#${id}-mouth)` }, [
    path('', { class: 'throat', 'data-part': 'lips' }),
    element('ellipse', { class: 'tongue', 'data-part': 'tongue', cx: 0 }),
    element('rect', { class: 'teeth', 'data-part': 'teeth', rx: 3 }),
  ]);
  return element('g', { class: 'mouth', transform: 'translate(120 152)' }, [
    inside,
    path('', { class: 'lips', 'data-part': 'lips' }),
  ]);
}

function path(d, attributes) {
  return element('path', { d, ...attributes });
}

function element(name, attributes, children = []) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
