/* SPDX-License-Identifier: MIT */
/* Processor models: which of the features that an engine can give a machine gets, and whose processor it seems. Pure.
 *
 *   portable   the instruction sets of x86-64-v2 and a fixed list for operating systems, the same on every host
 *   x86-64, x86-64-v2, x86-64-v3   the psABI's level, and whatever the engine has for operating systems
 *   host       everything that the engine can give here */
#ifndef IMGVM_ARCH_CPU_MODEL_H
#define IMGVM_ARCH_CPU_MODEL_H

#include "../base/error.h"
#include "cpu_feature.h"

enum cpu_model { CPU_MODEL_HOST, CPU_MODEL_PORTABLE, CPU_MODEL_X86_64, CPU_MODEL_X86_64_V2, CPU_MODEL_X86_64_V3 };

/* What a machine description asks for; all zero is `host`. */
struct cpu_wish {
    enum cpu_model model;
    enum cpu_vendor vendor; /* AUTO: the host's with model `host`, Intel's with the others */
    struct feature_set plus, minus;
};

/* model: one of the names above, NULL or "" for host; features: "+name -name ...", or NULL; vendor: intel, amd or auto,
 * NULL or "" for auto. */
int cpu_wish_parse(struct cpu_wish *wish, const char *model, const char *features, const char *vendor, imgvm_error *err);

/* Never AUTO. wish may be NULL: as the host is. */
enum cpu_vendor cpu_wish_vendor(const struct cpu_wish *wish, enum cpu_vendor host);

/* The features of the machine, of those that the engine offers. -ENOTSUP when it lacks one that was asked for. */
int cpu_wish_grant(const struct cpu_wish *wish, const struct feature_set *offered, struct feature_set *granted,
                   imgvm_error *err);

#endif
