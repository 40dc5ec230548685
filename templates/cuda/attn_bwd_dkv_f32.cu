// dv[j,g] = sum_t,h P[t,j] do[t,h]      dk[j,g] = scale * sum_t,h dS[t,j] q[t,h]      h / (H/K) = g
// P[t,j] = exp(scale * q[t,h].k[j,g] - lse[t,h])      max(docstart[t], t - window) <= j <= t      window 0: no limit
// dS[t,j] = P[t,j] * (do[t,h].v[j,g] - delta[t,h])
// holes   KERNEL  THREADS (128)  DTQ (f32, bf16: dtype of q k v)  DTG (of do dk dv)  H  K (divides H)
//         D (multiple of 8, 8 .. 256)
// needs   docstart ascends in a sequence; scale > 0; strides multiples of 8 elements, pointers of 16 bytes
// grid    T/seq * K * ceil(seq/32): a sequence, a kv head and 32 keys; the first keys, which most queries see, first
// maps    thread = rows y, y + 16 of the keys, queries x + 8 n, channels 4 (x + 8 g) ..; y = thread / 8, x = thread % 8
// types   fp32
// order   heads ascending, queries ascending
// smem    512 * (D + 4) bytes, dynamic: k v q do [32] rows of D + 4
extern "C" __global__ __launch_bounds__(@THREADS@, 2)
void @KERNEL@(
	@DTG@ *__restrict__ dk,                    // [T, dks] of which K*D
	@DTG@ *__restrict__ dv,                    // [T, dvs] of which K*D
	long dks, long dvs,
	const @DTQ@ *__restrict__ q,               // [T, qs] of which H*D
	const @DTQ@ *__restrict__ k,               // [T, ks] of which K*D
	const @DTQ@ *__restrict__ v,               // [T, vs] of which K*D
	long qs, long ks, long vs,
	const @DTG@ *__restrict__ dout,            // [T, H*D]
	const f32 *__restrict__ lse,               // [T, H]
	const f32 *__restrict__ delta,             // [T, H]
	const i32 *__restrict__ docstart,          // [T]
	long window, double scale, long seq,
	long)                                      // T: the grid follows from it
{
	enum { H = @H@, K = @K@, D = @D@, B = 32, TILE = B * (D + 4), ND = (D + 31) / 32 };
	const float log2e = 1.44269504f, c = (float)scale * log2e;
	const int x = (int)threadIdx.x % 8, y = (int)threadIdx.x / 8;

	const int blocks = (int)((seq + B - 1) / B), item = (int)blockIdx.x;
	const int g = item / blocks % K, win = (int)window;
	const int first = item / blocks / K * (int)seq, j0 = first + item % blocks * B, end = first + (int)seq;

	__shared__ float p[B * 36];
	float *const kb = (float *)dynamic_smem(), *const vb = kb + TILE, *const qb = vb + TILE, *const dob = qb + TILE;
	float4 acck[2][ND], accv[2][ND];

	attn_load_f32<D>(kb, k + g * D, ks, j0, end);
	attn_load_f32<D>(vb, v + g * D, vs, j0, end);
	#pragma unroll
	for (int d = 0; d < 2 * ND; d++)
		acck[d / ND][d % ND] = accv[d / ND][d % ND] = make_float4(0.f, 0.f, 0.f, 0.f);

	for (int h = g * (H / K); h < (g + 1) * (H / K); h++)
		for (int t0 = j0; t0 < end && attn_lo(docstart, win, t0) < j0 + B; t0 += B) {
			float s[2][4], ds[2][4];

			__syncthreads();
			attn_load_f32<D>(qb, q + h * D, qs, t0, end);
			attn_load_f32<D>(dob, dout + h * D, (long)H * D, t0, end);
			__syncthreads();
			attn_dots_f32<D>(s, kb, qb);
			attn_dots_f32<D>(ds, vb, dob);
			#pragma unroll
			for (int n = 0; n < 4; n++) {
				const int t = t0 + x + 8 * n, in = t < end ? t : end - 1, lo = attn_lo(docstart, win, in);
				const float e = lse[(long)in * H + h] * log2e, del = delta[(long)in * H + h];

				#pragma unroll
				for (int i = 0; i < 2; i++) {
					const int j = j0 + y + i * 16;

					s[i][n] = j < lo || j > t || t >= end ? 0.f : exp2f(fmaf(s[i][n], c, -e));
					ds[i][n] = s[i][n] * (ds[i][n] - del);
				}
			}

			// the rows of a thread are those of its warp alone
			__syncwarp();
			attn_keep_f32(p, s);
			__syncwarp();
			attn_sums_f32<D>(accv, p, dob);
			__syncwarp();
			attn_keep_f32(p, ds);
			__syncwarp();
			attn_sums_f32<D>(acck, p, qb);
		}
	attn_store_f32<D>(dk + g * D, dks, acck, (float)scale, j0, end);
	attn_store_f32<D>(dv + g * D, dvs, accv, 1.f, j0, end);
}
