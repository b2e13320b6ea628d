// What travels between the desk in Python and this page: see cytonym.label.desk.

export const UNLABELLED = -1;
export const UNSURE = -2;
export const NOT_A_CELL = -3;

export type Header = { [field: string]: unknown };

export interface LabelClass {
  id: number;
  name: string;
  color: string;
}

export interface Region {
  name: string;
  first: number;
  count: number;
  width: number;
  height: number;
}

export interface Counts {
  total: number;
  labelled: number;
  by_class: { [id: string]: number };
  unsure: number;
  not_cell: number;
}

export interface Hello {
  protocol: number;
  n: number;
  store?: string; // names the log, the annotator and the cells; empty where labels do not outlive the server
  classes: LabelClass[];
  channels: string[];
  rgb: boolean;
  regions: Region[];
  maps: string[];
  markers: string[];
  annotator: string;
  counts: Counts;
  can_undo: boolean;
  can_redo: boolean;
  model: ModelInfo | null;
  has_image: boolean;
  patch_px: number;
  features?: string[]; // what suggestions are made from
  title: string;
  readonly: boolean;
}

export interface ModelInfo {
  version: string | number;
  trained_on: number;
  seconds?: number;
  precision?: unknown;
}

export interface CellDetails {
  row: number;
  name: string;
  region: string;
  instance: number | string;
  label: number;
  label_name?: string;
  by: string | null;
  time: string | null;
  note: string | null;
  prediction: number;
  probabilities: [number, number][];
  markers: [string, number | null][];
  history: Header[];
  x: number | null;
  y: number | null;
}

export interface Reply {
  header: Header;
  buffers: ArrayBuffer[];
}

const ALIGN = 8;
const padded = (bytes: number): number => Math.ceil(bytes / ALIGN) * ALIGN;

/** One message as bytes: the length of the header, the header, then the buffers, each from a multiple of eight. */
export function encodeFrame(header: Header, buffers: ArrayBufferView[] = []): ArrayBuffer {
  const text = new TextEncoder().encode(JSON.stringify({ ...header, buffers: buffers.map((b) => b.byteLength) }));
  const length = padded(4 + text.length) - 4; // JSON may end with spaces: the buffers after it are then aligned
  const frame = new Uint8Array(4 + length + buffers.reduce((sum, b) => sum + padded(b.byteLength), 0));
  new DataView(frame.buffer).setUint32(0, length, true);
  frame.fill(32, 4, 4 + length);
  frame.set(text, 4);
  let at = 4 + length;
  for (const b of buffers) {
    frame.set(new Uint8Array(b.buffer, b.byteOffset, b.byteLength), at);
    at += padded(b.byteLength);
  }
  return frame.buffer;
}

/** The header and the buffers of one message; every buffer is a copy that starts at its own zero. */
export function decodeFrame(frame: ArrayBuffer): Reply {
  if (frame.byteLength < 4) throw new Error(`message of ${frame.byteLength} bytes: too short for a header`);
  const length = new DataView(frame).getUint32(0, true);
  if (4 + length > frame.byteLength) throw new Error("message is shorter than its header says");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(frame, 4, length))) as Header;
  const sizes = (header["buffers"] ?? []) as number[];
  const buffers: ArrayBuffer[] = [];
  let at = 4 + length;
  for (const size of sizes) {
    if (at + size > frame.byteLength) throw new Error("message is shorter than its buffers");
    buffers.push(frame.slice(at, at + size));
    at += padded(size);
  }
  delete header["buffers"];
  return { header, buffers };
}

/** A buffer on its own, from whatever a host hands over (DataView in notebooks). */
export function ownBuffer(view: ArrayBuffer | ArrayBufferView): ArrayBuffer {
  if (view instanceof ArrayBuffer) return view;
  return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) as ArrayBuffer;
}
