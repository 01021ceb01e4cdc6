/* SPDX-License-Identifier: Apache-2.0
 * For files whose speed nobody notices: small code. The build has one set of flags for all files. Included first. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")
#endif
