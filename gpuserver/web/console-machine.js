/** The machine and the server in figures: sessions, GPUs, memory, disk. */

import { node } from './nodes.js';
import { say } from './i18n.js';
import { size, span } from './console-words.js';

/** @param {HTMLElement} list @param {object} status what `/status` answers */
export function showFacts(list, status) {
  const seats = { limit: status.max_sessions };
  fact(list, 'sessions', () => status.active_sessions, 'fact.ofMost', seats);
  fact(list, 'connections', () => status.active_connections, 'fact.connectionsNote');
  const tutors = Object.keys(status.tutors ?? {}).length;
  fact(list, 'tutors', () => tutors, 'fact.tutorsNote', { count: status.cached_engines });
  const up = () => span(status.uptime_seconds);
  fact(list, 'up', up, 'fact.version', { version: status.version });
}

/** @param {HTMLElement} list @param {object} table what `/mgmt/v1/models` answers */
export function showMachine(list, { models, gpus, host, disk }) {
  const shown = gpus.map((gpu) => showGpu(list, gpu, models));
  if (!gpus.length) shown.push(showNoGpu(list));
  const memory = sum(models.map((model) => model.memory_mb));
  const facts = { total: host.total_mb, free: host.free_mb, ours: memory };
  shown.push(bar(list, 'memory', 'machine.memory', {}, facts));
  shown.push(showDisk(list, disk));
  for (const item of [...list.children]) if (!shown.includes(item)) item.remove();
}

function showGpu(list, gpu, models) {
  const ours = sum(models.map((model) => model.gpu_memory_mb?.[gpu.index]));
  const facts = { total: gpu.total_mb, free: gpu.free_mb, ours, note: gpu.name };
  const item = bar(list, `gpu-${gpu.index}`, 'machine.gpu', { index: gpu.index }, facts);
  const limited = gpu.allowed_mb > 0 && gpu.allowed_mb < gpu.total_mb;
  const allowed = part(item, 'allowed');
  allowed.hidden = !limited;
  if (limited) say(allowed, 'machine.allowed', { allowed: () => size(gpu.allowed_mb) });
  return item;
}

function showNoGpu(list) {
  const item = line(list, 'no-gpu');
  say(part(item, 'alone'), 'machine.noGpu');
  return item;
}

function showDisk(list, disk) {
  const item = line(list, 'disk');
  say(part(item, 'name'), 'machine.disk');
  say(part(item, 'amount'), 'machine.free', { free: () => size(disk.free_mb) });
  const params = { models: () => size(disk.models_mb), folder: disk.folder };
  say(part(item, 'rest'), 'machine.models', params);
  return item;
}

/** One bar: what our models take, what others take, and what is free. */
function bar(list, id, name, params, { total, free, ours, note = '' }) {
  const item = line(list, id);
  const used = Math.max(0, total - free);
  say(part(item, 'name'), name, params);
  part(item, 'note').textContent = note;
  const amount = part(item, 'amount');
  say(amount, 'machine.used', { used: () => size(used), total: () => size(total) });
  const meter = part(item, 'meter', meterBar);
  const [mine, others] = meter.children;
  const known = Math.min(ours, used);
  mine.style.width = `${(known / (total || 1)) * 100}%`;
  others.style.width = `${((used - known) / (total || 1)) * 100}%`;
  say(meter, name, params, 'aria-label');
  say(meter, 'machine.used', { used: () => size(used), total: () => size(total) }, 'aria-valuetext');
  meter.setAttribute('aria-valuemax', total);
  meter.setAttribute('aria-valuenow', used);
  say(part(item, 'rest'), 'machine.parts', { ours: () => size(known), free: () => size(free) });
  return item;
}

function meterBar(className) {
  const meter = node('div', className);
  meter.setAttribute('role', 'meter');
  meter.setAttribute('aria-valuemin', '0');
  meter.append(node('span', 'mine'), node('span', 'others'));
  return meter;
}

function fact(list, id, value, note, params = {}) {
  const item = line(list, id, 'div');
  say(part(item, 'fact-name', (name) => node('dt', name)), `fact.${id}`);
  const words = part(item, 'fact-words', (name) => node('dd', name));
  part(words, 'fact-value').textContent = value();
  say(part(words, 'fact-note'), note, params);
}

/** The line of this id, made where it is missing: what is there stays, so that nothing flickers. */
function line(list, id, tag = 'li') {
  const there = [...list.children].find((item) => item.dataset.id === id);
  if (there) return there;
  const made = list.appendChild(node(tag));
  made.dataset.id = id;
  return made;
}

function part(item, className, make = (name) => node('span', name)) {
  return item.querySelector(`:scope > .${className}`) ?? item.appendChild(make(className));
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + (number ?? 0), 0);
}
