// Mixes the channels of many small pictures (or of one large one) with WebGL2: colours and contrast are uniforms.

import { parseColor } from "./colors.ts";
import { program, uniforms } from "./points.ts";

export const MOST_CHANNELS = 16;

export interface Pictures {
  data: Uint8Array | Uint16Array; // [n, c, h, w]
  n: number;
  c: number;
  h: number;
  w: number;
  outline: Uint8Array | null; // [n, h, w]
}

export interface ShownChannel {
  color: string;
  low: number;
  high: number;
  on: boolean;
}

export interface Tile {
  index: number;
  x: number;
  y: number;
  w: number;
  h: number;
}

const VERTEX = `#version 300 es
in vec2 corner; in vec4 box; in float index;
uniform vec2 canvas; uniform vec2 grid;
out vec2 inside; flat out vec2 origin;
void main() {
  vec2 p = (box.xy + corner * box.zw) / canvas * 2.0 - 1.0;
  gl_Position = vec4(p.x, -p.y, 0.0, 1.0);
  inside = corner;
  origin = vec2(mod(index, grid.x), floor(index / grid.x));
}`;
const FRAGMENT = `#version 300 es
precision highp float; precision highp sampler2DArray;
in vec2 inside; flat in vec2 origin;
uniform sampler2DArray pictures; uniform sampler2D outlines;
uniform vec2 grid; uniform vec2 size; uniform int channels; uniform bool outlined;
uniform vec3 colors[${MOST_CHANNELS}]; uniform vec2 limits[${MOST_CHANNELS}];
out vec4 result;
void main() {
  vec2 pixel = clamp(inside * size, vec2(0.5), size - 0.5);
  vec2 at = (origin * size + pixel) / (grid * size);
  vec3 sum = vec3(0.0);
  for (int k = 0; k < ${MOST_CHANNELS}; k++) {
    if (k >= channels) break;
    float v = texture(pictures, vec3(at, float(k))).r;
    sum += colors[k] * clamp((v - limits[k].x) / max(limits[k].y - limits[k].x, 1e-7), 0.0, 1.0);
  }
  if (outlined) {
    ivec2 texel = ivec2(origin * size + floor(inside * size * 0.9999));
    if (texelFetch(outlines, texel, 0).r > 0.0) sum = mix(sum, vec3(1.0), 0.75);
  }
  result = vec4(min(sum, 1.0), 1.0);
}`;

const HALF = new Uint16Array(65536);
let halfReady = false;

/** The sixteen-bit floats of k / 65535. */
export function halfTable(): Uint16Array {
  if (halfReady) return HALF;
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  for (let k = 0; k < 65536; k++) {
    const value = k / 65535;
    if (value < 2 ** -14) HALF[k] = Math.round(value * 2 ** 24);
    else {
      float[0] = value;
      HALF[k] = ((bits[0] as number) - (112 << 23) + 0x1000) >>> 13; // another bias, rounded to ten bits; a carry is right
    }
  }
  halfReady = true;
  return HALF;
}

/** How the pictures lie in one texture: as square as can be. */
export function atlasGrid(n: number, h: number, w: number): [number, number] {
  const columns = Math.max(1, Math.min(n, Math.round(Math.sqrt((n * h) / w))));
  return [columns, Math.max(1, Math.ceil(n / columns))];
}

/** [n, c, h, w] to c layers, each with all pictures side by side. */
export function toAtlas<T extends Uint8Array | Uint16Array>(data: T, n: number, c: number, h: number, w: number, columns: number, rows: number, table?: Uint16Array): T {
  const out = (data instanceof Uint8Array ? new Uint8Array(c * rows * columns * h * w) : new Uint16Array(c * rows * columns * h * w)) as T;
  const stride = columns * w;
  for (let i = 0; i < n; i++) {
    const corner = Math.floor(i / columns) * h * stride + (i % columns) * w;
    for (let k = 0; k < c; k++) {
      const from = (i * c + k) * h * w;
      const to = k * rows * h * stride + corner;
      for (let y = 0; y < h; y++) {
        if (!table) out.set(data.subarray(from + y * w, from + (y + 1) * w), to + y * stride);
        else for (let x = 0; x < w; x++) out[to + y * stride + x] = table[data[from + y * w + x] as number] as number;
      }
    }
  }
  return out;
}

export class Compositor {
  private gl: WebGL2RenderingContext;
  private made!: WebGLProgram;
  private at!: { [name: string]: WebGLUniformLocation | null };
  private array!: WebGLVertexArrayObject;
  private instances!: WebGLBuffer;
  private textures!: { pictures: WebGLTexture; outlines: WebGLTexture };
  private shape: { columns: number; rows: number; h: number; w: number; c: number; wide: boolean; outlined: boolean } | null = null;
  private last: Pictures | null = null;
  onRestored: () => void = () => {};

  constructor(readonly canvas: HTMLCanvasElement) {
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: true, premultipliedAlpha: true });
    if (!gl) throw new Error("This browser offers no WebGL2, which the pictures need.");
    this.gl = gl;
    this.create();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.create();
      if (this.last) this.setPictures(this.last);
      this.onRestored();
    });
  }

  get largestSide(): number {
    return this.gl.getParameter(this.gl.MAX_TEXTURE_SIZE) as number;
  }

  private create(): void {
    const gl = this.gl;
    this.made = program(gl, VERTEX, FRAGMENT);
    this.at = uniforms(gl, this.made, ["canvas", "grid", "size", "channels", "outlined", "colors", "limits", "pictures", "outlines"]);
    this.array = gl.createVertexArray() as WebGLVertexArrayObject;
    gl.bindVertexArray(this.array);
    const corner = gl.getAttribLocation(this.made, "corner");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(corner);
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
    this.instances = gl.createBuffer() as WebGLBuffer;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.instances);
    for (const [name, size, offset] of [["box", 4, 0], ["index", 1, 16]] as const) {
      const location = gl.getAttribLocation(this.made, name);
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, size, gl.FLOAT, false, 20, offset);
      gl.vertexAttribDivisor(location, 1);
    }
    gl.bindVertexArray(null);
    this.textures = { pictures: gl.createTexture() as WebGLTexture, outlines: gl.createTexture() as WebGLTexture };
    this.shape = null;
  }

  private sampling(target: number, way: number): void {
    const gl = this.gl;
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(target, side, gl.CLAMP_TO_EDGE);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, filter, way);
  }

  setPictures(p: Pictures): void {
    const gl = this.gl;
    this.last = p;
    if (!p.n || !p.c || gl.isContextLost()) {
      this.shape = null;
      return;
    }
    const [columns, rows] = atlasGrid(p.n, p.h, p.w);
    const wide = p.data instanceof Uint16Array;
    const c = Math.min(p.c, MOST_CHANNELS);
    const layers = toAtlas(p.data, p.n, p.c, p.h, p.w, columns, rows, wide ? halfTable() : undefined);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, this.textures.pictures);
    const used = layers.subarray(0, c * rows * columns * p.h * p.w);
    if (wide) gl.texImage3D(gl.TEXTURE_2D_ARRAY, 0, gl.R16F, columns * p.w, rows * p.h, c, 0, gl.RED, gl.HALF_FLOAT, used);
    else gl.texImage3D(gl.TEXTURE_2D_ARRAY, 0, gl.R8, columns * p.w, rows * p.h, c, 0, gl.RED, gl.UNSIGNED_BYTE, used);
    this.sampling(gl.TEXTURE_2D_ARRAY, gl.LINEAR);
    if (p.outline) {
      const drawn = toAtlas(p.outline, p.n, 1, p.h, p.w, columns, rows);
      gl.activeTexture(gl.TEXTURE1);
      gl.bindTexture(gl.TEXTURE_2D, this.textures.outlines);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, columns * p.w, rows * p.h, 0, gl.RED, gl.UNSIGNED_BYTE, drawn);
      this.sampling(gl.TEXTURE_2D, gl.NEAREST);
    }
    this.shape = { columns, rows, h: p.h, w: p.w, c, wide, outlined: p.outline !== null };
  }

  /** Draws the pictures at their places, in CSS pixels of a canvas `width` wide. */
  draw(tiles: Tile[], channels: ShownChannel[], outlines: boolean, width: number, height: number): void {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const shape = this.shape;
    if (!shape || !tiles.length) return;
    const colors = new Float32Array(MOST_CHANNELS * 3);
    const limits = new Float32Array(MOST_CHANNELS * 2).fill(1);
    const top = shape.wide ? 65535 : 255;
    channels.slice(0, shape.c).forEach((channel, k) => {
      if (channel.on) colors.set(parseColor(channel.color).map((v) => v / 255), 3 * k);
      limits.set([channel.low / top, channel.high / top], 2 * k);
    });
    gl.useProgram(this.made);
    gl.bindVertexArray(this.array);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, this.textures.pictures);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.outlines);
    gl.uniform1i(this.at["pictures"] as WebGLUniformLocation, 0);
    gl.uniform1i(this.at["outlines"] as WebGLUniformLocation, 1);
    gl.uniform2f(this.at["canvas"] as WebGLUniformLocation, width, height);
    gl.uniform2f(this.at["grid"] as WebGLUniformLocation, shape.columns, shape.rows);
    gl.uniform2f(this.at["size"] as WebGLUniformLocation, shape.w, shape.h);
    gl.uniform1i(this.at["channels"] as WebGLUniformLocation, shape.c);
    gl.uniform1i(this.at["outlined"] as WebGLUniformLocation, outlines && shape.outlined ? 1 : 0);
    gl.uniform3fv(this.at["colors"] as WebGLUniformLocation, colors);
    gl.uniform2fv(this.at["limits"] as WebGLUniformLocation, limits);
    const places = new Float32Array(tiles.length * 5);
    tiles.forEach((t, k) => places.set([t.x, t.y, t.w, t.h, t.index], 5 * k));
    gl.bindBuffer(gl.ARRAY_BUFFER, this.instances);
    gl.bufferData(gl.ARRAY_BUFFER, places, gl.DYNAMIC_DRAW);
    gl.disable(gl.BLEND);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, tiles.length);
    gl.bindVertexArray(null);
  }
}
