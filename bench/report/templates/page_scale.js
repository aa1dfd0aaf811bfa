/* Axes: where a value stands, and which values to write beside an axis. */

function scale([low, high], [from, to], log) {
  const f = log ? Math.log : (v) => v;
  const back = log ? Math.exp : (v) => v;
  const [a, b] = [f(low), f(high)];
  const at = (v) => from + ((f(v) - a) / (b - a)) * (to - from);
  at.value = (place) => back(a + ((place - from) / (to - from)) * (b - a));
  return at;
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/* Powers of two for positions, 1-2-5 steps otherwise; plain steps where a decade would leave too few. */
function logTicks(low, high, most, base) {
  if (base === 2) {
    const powers = [];
    for (let p = Math.ceil(Math.log2(low) - 1e-9); p <= Math.log2(high) + 1e-9; p++) powers.push(p);
    const step = Math.max(1, Math.ceil(powers.length / most));
    if (powers.length > 1) return powers.filter((p) => (powers.at(-1) - p) % step === 0).map((p) => 2 ** p);
  }
  let ticks = [];
  for (const steps of [[1, 1.5, 2, 3, 4, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    ticks = [];
    for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++) {
      for (const s of steps) if (s * 10 ** d >= low * 0.9999 && s * 10 ** d <= high * 1.0001) ticks.push(Number((s * 10 ** d).toPrecision(6)));
    }
    if (ticks.length <= most) break;
  }
  if (ticks.length < 2) return linearTicks(low, high, most);
  return ticks.length > most ? ticks.filter((_, i) => i % Math.ceil(ticks.length / most) === 0) : ticks;
}

/* The range of an axis: ordinary values stay readable, however far one line runs away. */
function yDomain(values, log) {
  const found = values.filter((v) => v !== null && (!log || v > 0)).sort((a, b) => a - b);
  if (!found.length) return null;
  const low = found[0];
  let high = found.at(-1);
  if (log) {
    const room = Math.max((high / low) ** 0.05, 1.06);
    return [low / room, high * room];
  }
  const middle = found[found.length >> 1];
  if (low >= 0 && middle > 0 && high > 20 * middle) high = 5 * middle;
  if (low >= 0 && low < 0.6 * high) return [0, high > 0 ? high * 1.06 : 1];
  const room = 0.08 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - room, high + room];
}

function xDomain(values, log, categories) {
  if (categories) return [-0.4, categories.length - 0.6];
  const found = values.filter((v) => v !== null && (!log || v > 0));
  if (!found.length) return null;
  const [low, high] = [Math.min(...found), Math.max(...found)];
  if (log) {
    const room = Math.max((high / low) ** 0.03, 1.03);
    return [low / room, high * room];
  }
  const room = 0.03 * (high - low) || 0.5;
  return [low - room, high + room];
}
