// Mixes the channels of many small pictures (or of one large one) with WebGL2: colours and contrast are uniforms. The numbers lie on
// the graphics card as they arrived, one after another, rows of a texture being filled like lines of text.

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
uniform vec2 canvas;
out vec2 inside; flat out int picture;
void main() {
  vec2 p = (box.xy + corner * box.zw) / canvas * 2.0 - 1.0;
  gl_Position = vec4(p.x, -p.y, 0.0, 1.0);
  inside = corner;
  picture = int(index + 0.5);
}`;
const FRAGMENT = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D;
in vec2 inside; flat in int picture;
uniform usampler2D pictures; uniform usampler2D outlines;
uniform ivec2 size; uniform int channels; uniform int layers; uniform int pictureLine; uniform int outlineLine; uniform bool outlined;
uniform vec3 colors[${MOST_CHANNELS}]; uniform vec2 limits[${MOST_CHANNELS}];
out vec4 result;
float value(int layer, int y, int x) {
  int at = (layer * size.y + y) * size.x + x;
  return float(texelFetch(pictures, ivec2(at % pictureLine, at / pictureLine), 0).r);
}
void main() {
  vec2 pixel = inside * vec2(size) - 0.5;
  ivec2 low = clamp(ivec2(floor(pixel)), ivec2(0), size - 1);
  ivec2 high = min(low + 1, size - 1);
  vec2 part = clamp(pixel - vec2(low), 0.0, 1.0);
  vec3 sum = vec3(0.0);
  for (int k = 0; k < ${MOST_CHANNELS}; k++) {
    if (k >= channels) break;
    if (colors[k] == vec3(0.0)) continue;
    int layer = picture * layers + k;
    float above = mix(value(layer, low.y, low.x), value(layer, low.y, high.x), part.x);
    float below = mix(value(layer, high.y, low.x), value(layer, high.y, high.x), part.x);
    sum += colors[k] * clamp((mix(above, below, part.y) - limits[k].x) / max(limits[k].y - limits[k].x, 1e-3), 0.0, 1.0);
  }
  if (outlined) {
    ivec2 at = min(ivec2(inside * vec2(size)), size - 1);
    int place = (picture * size.y + at.y) * size.x + at.x;
    if (texelFetch(outlines, ivec2(place % outlineLine, place / outlineLine), 0).r > 0u) sum = mix(sum, vec3(1.0), 0.75);
  }
  result = vec4(min(sum, 1.0), 1.0);
}`;

const LINE = 4096;

/** Length of a line and number of lines of a texture for so many numbers; nothing where the card has no texture as large. */
export function textureShape(length: number, most: number): [number, number] | null {
  const line = length > LINE * most ? most : Math.min(LINE, most);
  const lines = Math.max(1, Math.ceil(length / line));
  return lines > most ? null : [line, lines];
}

export class Compositor {
  private gl: WebGL2RenderingContext;
  private made!: WebGLProgram;
  private at!: { [name: string]: WebGLUniformLocation | null };
  private array!: WebGLVertexArrayObject;
  private instances!: WebGLBuffer;
  private textures!: { pictures: WebGLTexture; outlines: WebGLTexture };
  private shape: { h: number; w: number; c: number; pictureLine: number; outlineLine: number } | null = null;
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

  /** Lets the browser have its context back, of which it has few. */
  close(): void {
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  private create(): void {
    const gl = this.gl;
    this.made = program(gl, VERTEX, FRAGMENT);
    this.at = uniforms(gl, this.made, ["canvas", "size", "channels", "layers", "pictureLine", "outlineLine", "outlined", "colors", "limits", "pictures", "outlines"]);
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

  /** Puts whole numbers on the card; the length of a line. */
  private upload(unit: number, texture: WebGLTexture, data: Uint8Array | Uint16Array): number {
    const gl = this.gl;
    const found = textureShape(data.length, gl.getParameter(gl.MAX_TEXTURE_SIZE) as number);
    if (!found) throw new Error("These pictures are more than the graphics card takes: show fewer channels, or fewer cells a page.");
    const [line, lines] = found;
    const [kind, type] = data instanceof Uint16Array ? [gl.R16UI, gl.UNSIGNED_SHORT] : [gl.R8UI, gl.UNSIGNED_BYTE];
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    const full = Math.floor(data.length / line);
    if (full * line === data.length) gl.texImage2D(gl.TEXTURE_2D, 0, kind, line, lines, 0, gl.RED_INTEGER, type, data);
    else {
      gl.texImage2D(gl.TEXTURE_2D, 0, kind, line, lines, 0, gl.RED_INTEGER, type, null);
      if (full) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, line, full, gl.RED_INTEGER, type, data);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, full, data.length - full * line, 1, gl.RED_INTEGER, type, data.subarray(full * line));
    }
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    return line;
  }

  setPictures(p: Pictures): void {
    this.last = p;
    this.shape = null;
    if (!p.n || !p.c || this.gl.isContextLost()) return;
    const pictureLine = this.upload(0, this.textures.pictures, p.data);
    const outlineLine = p.outline ? this.upload(1, this.textures.outlines, p.outline) : 0;
    this.shape = { h: p.h, w: p.w, c: p.c, pictureLine, outlineLine };
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
    const mixed = channels.slice(0, Math.min(shape.c, MOST_CHANNELS));
    mixed.forEach((channel, k) => {
      if (channel.on) colors.set(parseColor(channel.color).map((v) => v / 255), 3 * k);
      limits.set([channel.low, channel.high], 2 * k);
    });
    gl.useProgram(this.made);
    gl.bindVertexArray(this.array);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.pictures);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.outlines);
    gl.uniform1i(this.at["pictures"] as WebGLUniformLocation, 0);
    gl.uniform1i(this.at["outlines"] as WebGLUniformLocation, 1);
    gl.uniform2f(this.at["canvas"] as WebGLUniformLocation, width, height);
    gl.uniform2i(this.at["size"] as WebGLUniformLocation, shape.w, shape.h);
    const whole = { channels: mixed.length, layers: shape.c, pictureLine: shape.pictureLine, outlineLine: shape.outlineLine, outlined: outlines && shape.outlineLine ? 1 : 0 };
    for (const [name, value] of Object.entries(whole)) gl.uniform1i(this.at[name] as WebGLUniformLocation, value);
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
