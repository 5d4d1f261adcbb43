/** The shape of a mouth for each of the 15 Oculus visemes, and in between them. */

/**
 * @typedef {{open: number, width: number, round: number, smile: number, teeth: number,
 *   tongue: number}} Shape each from 0 to 1: how far it is open, how wide, how rounded, how far the
 *   corners rise, and how much of teeth and tongue is seen
 */

/** @returns {Shape} */
const shape = (open, width, round, smile, teeth, tongue) => ({ open, width, round, smile, teeth, tongue });

/** @type {Record<string, Shape>} */
export const SHAPES = {
  sil: shape(0, 0.62, 0, 0.75, 0, 0),
  PP: shape(0, 0.5, 0.1, 0.2, 0, 0),
  FF: shape(0.24, 0.56, 0, 0.25, 1, 0),
  TH: shape(0.34, 0.58, 0, 0.25, 0.6, 1),
  DD: shape(0.34, 0.6, 0, 0.3, 0.7, 0.7),
  kk: shape(0.34, 0.58, 0, 0.3, 0.5, 0.3),
  CH: shape(0.36, 0.36, 0.55, 0.1, 0.9, 0),
  SS: shape(0.26, 0.66, 0, 0.45, 1, 0),
  nn: shape(0.3, 0.58, 0, 0.35, 0.6, 0.6),
  RR: shape(0.3, 0.4, 0.5, 0.15, 0.4, 0.4),
  aa: shape(0.9, 0.64, 0.15, 0.3, 0.55, 0.6),
  E: shape(0.52, 0.74, 0, 0.5, 0.6, 0.4),
  I: shape(0.34, 0.84, 0, 0.65, 0.9, 0.3),
  O: shape(0.7, 0.36, 0.95, 0, 0.1, 0.3),
  U: shape(0.4, 0.24, 1, 0, 0, 0),
};

/** A mouth is on its way to a sound before the sound is heard. */
const LEAD_MS = 45;
/** And takes about this long from one shape to the next. */
const BLEND_MS = 95;

/**
 * The mouth at a moment of the speech.
 * @param {{ms: number, viseme: string}[]} marks in order of time
 * @param {number} ms from the start of the turn's speech
 * @returns {Shape}
 */
export function mouthAt(marks, ms) {
  const now = ms + LEAD_MS;
  const index = lastBefore(marks, now);
  if (index < 0) return SHAPES.sil;
  const to = shapeOf(marks[index]);
  const from = index > 0 ? shapeOf(marks[index - 1]) : SHAPES.sil;
  return mix(from, to, smooth((now - marks[index].ms) / BLEND_MS));
}

/** The shape a part of the way from one to another. @param {Shape} from @param {Shape} to @param {number} part @returns {Shape} */
export function mix(from, to, part) {
  const mixed = {};
  for (const key of Object.keys(to)) mixed[key] = from[key] + (to[key] - from[key]) * part;
  return mixed;
}

/** A mouth for sound that came without visemes, from its loudness. @param {number} level 0 to 1 @returns {Shape} */
export function mouthFor(level) {
  return mix(SHAPES.sil, SHAPES.aa, Math.min(1, level * 2.2));
}

function shapeOf({ viseme }) {
  return SHAPES[viseme] ?? SHAPES.sil;
}

function lastBefore(marks, ms) {
  let low = 0;
  let high = marks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (marks[middle].ms <= ms) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function smooth(part) {
  const x = Math.max(0, Math.min(1, part));
  return x * x * (3 - 2 * x);
}
