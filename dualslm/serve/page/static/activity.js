// Voice activity by loudness: where in a stream of 20 ms blocks a turn begins and ends.
//
// The floor is what the room sounds like between words. It falls quickly and rises slowly, so that it finds the pauses
// of somebody who speaks. Noise that is loud enough passes here; the server's detector then says that nobody spoke.

const QUIET_DB = -52; // below this nothing counts as speech, in any room
const ABOVE_FLOOR_DB = 9; // as loud as this over the room, a block may be speech
const RISE_DB = 0.06; // per block: 3 dB a second
const LONGEST_BLOCKS = 3000; // 60 s, after which a turn is sent as it is
const LEAD_IN_BLOCKS = 15; // 0.3 s are kept in front: quiet consonants are detected late
const PAUSE_BLOCKS = 40; // 0.8 s without speech end a turn
const STARTS = { plain: [6, 10], guarded: [13, 16] }; // loud blocks of so many last ones begin one

export const decibel = (samples) =>
  20 * Math.log10(Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length) + 1e-9);

/** `push` gets blocks; `onStart()` is called where a turn begins, `onEnd(blocks)` where it has ended. */
export class VoiceActivity {
  constructor(onStart, onEnd) {
    Object.assign(this, { onStart, onEnd, guarded: false });
    this.reset();
    this.floor = null; // until the first block
  }

  reset() {
    this.recent = []; // whether each of the last blocks was loud
    this.blocks = []; // of the turn, or those before it
    this.speaking = false;
    this.silent = 0;
  }

  /** One block. While `guarded`, a turn begins later and louder: the page itself is heard in the microphone. */
  push(block) {
    const level = decibel(block);
    this.floor ??= Math.min(level, -50);
    this.floor = level < this.floor ? 0.7 * this.floor + 0.3 * level : Math.min(this.floor + RISE_DB, level);
    this.floor = Math.max(this.floor, -90);
    const over = ABOVE_FLOOR_DB + (this.guarded && !this.speaking ? 6 : 0);
    const loud = level > Math.max(QUIET_DB, this.floor + over);
    this.blocks.push(block);
    this.recent = [...this.recent, loud].slice(-16);
    if (!this.speaking) this.waitForStart();
    else this.waitForEnd(loud);
    return this.speaking;
  }

  waitForStart() {
    const [needed, among] = STARTS[this.guarded ? "guarded" : "plain"];
    this.blocks = this.blocks.slice(-(LEAD_IN_BLOCKS + among));
    if (this.recent.slice(-among).filter(Boolean).length < needed) return;
    this.speaking = true;
    this.silent = 0;
    this.onStart();
  }

  waitForEnd(loud) {
    this.silent = loud ? 0 : this.silent + 1;
    if (this.silent < PAUSE_BLOCKS && this.blocks.length < LONGEST_BLOCKS) return;
    const { blocks } = this;
    this.reset();
    this.onEnd(blocks);
  }
}
