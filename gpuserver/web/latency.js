/** How long an answer took, stage by stage: a thin bar, a sentence, and the numbers on demand. */

import { say, t } from './i18n.js';
import { node } from './nodes.js';

const STAGES = ['commit', 'transcript', 'passages', 'first_token', 'first_clause', 'first_audio', 'first_playback'];

/**
 * @param {Record<string, number>} timeline `turn.done`'s: milliseconds to each stage reached
 * @returns {HTMLElement | null} null where no stage of an answer was reached
 */
export function latencyStrip(timeline) {
  const sound = timeline.first_playback ?? timeline.first_audio;
  const end = sound ?? timeline.first_token;
  if (end === undefined) return null;
  const strip = node('details', 'latency');
  const summary = strip.appendChild(node('summary'));
  const bar = summary.appendChild(node('span', 'latency-bar'));
  bar.setAttribute('aria-hidden', 'true');
  const words = summary.appendChild(node('span', 'latency-words'));
  const seconds = (end / 1000).toFixed(2);
  say(words, sound === undefined ? 'latency.word' : 'latency.sound', { seconds });
  const list = strip.appendChild(node('dl'));
  let before = 0;
  for (const stage of STAGES) {
    const ms = timeline[stage];
    if (ms === undefined) continue;
    bar.append(segment(stage, ms, Math.max(0, Math.min(ms, end) - before)));
    before = Math.max(before, Math.min(ms, end));
    list.append(row(stage, ms));
  }
  return strip;
}

/** A part of the bar, as wide as the stage took. */
function segment(stage, ms, took) {
  const part = node('span', 'latency-part');
  part.dataset.stage = stage;
  part.style.flexGrow = String(took);
  say(part, 'latency.part', { stage: () => t(`latency.${stage}`), ms }, 'title');
  return part;
}

function row(stage, ms) {
  const pair = node('div');
  pair.dataset.stage = stage;
  say(pair.appendChild(node('dt')), `latency.${stage}`);
  say(pair.appendChild(node('dd')), 'latency.ms', { ms });
  return pair;
}
