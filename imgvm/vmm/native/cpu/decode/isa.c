/* SPDX-License-Identifier: MIT */
/* The .def tables as constant data. */
#include "isa.h"

/* Sets of status flags, for op.def. An operation with a new set adds it here. */
#define FL_0 0
#define FL_C 0x001
#define FL_P 0x004
#define FL_A 0x010
#define FL_Z 0x040
#define FL_O 0x800
#define FL_AC (FL_A | FL_C)
#define FL_AP (FL_A | FL_P)
#define FL_OC (FL_O | FL_C)
#define FL_OA (FL_O | FL_A)
#define FL_ZC (FL_Z | FL_C)
#define FL_ZPC (FL_Z | FL_P | FL_C)
#define FL_OAC (FL_O | FL_A | FL_C)
#define FL_S 0x080
#define FL_SAP (FL_S | FL_A | FL_P)
#define FL_SZAP (FL_S | FL_Z | FL_A | FL_P)
#define FL_OSA (FL_O | FL_S | FL_A)
#define FL_OSAP (FL_O | FL_SAP)
#define FL_OSZP (FL_O | FL_S | FL_Z | FL_P)
#define FL_OSZPC (FL_OSZP | FL_C)
#define FL_OSAPC (FL_OSAP | FL_C)
#define FL_OSZAP (FL_O | FL_SZAP)
#define FL_SZAPC (FL_SZAP | FL_C)
#define FL_OSZAPC (FL_OSZAP | FL_C)

const struct op_info op_infos[OP_COUNT] = {
#define OP(name, mnemonic, kind, written, undefined, read, attributes, feature) \
    {mnemonic, OPK_##kind, FL_##written, FL_##undefined, FL_##read, attributes, FEATURE_##feature},
#include "op.def"
#undef OP
};

const struct operand_info operand_infos[OPD_COUNT] = {
#define OPD(name, class, type) {CLASS_##class, TYPE_##type},
#include "operand.def"
#undef OPD
};

/* A row's form follows from the roles of its operands. */
enum role { ROLE_NONE, ROLE_RM, ROLE_REG, ROLE_ACC, ROLE_IMM, ROLE_REL, ROLE_ONE, ROLE_CL, ROLE_MOFFS, ROLE_OTHER };

#define ROLE_OF(operand, class)                                                                                     \
    ((operand) == OPD_ONE ? ROLE_ONE                                                                                \
     : (operand) == OPD_CL ? ROLE_CL                                                                                \
     : (class) == CLASS_NONE || (class) == CLASS_IMPLIED || (class) == CLASS_X || (class) == CLASS_Y ||             \
               (class) == CLASS_ST || (class) == CLASS_XMM0 ? ROLE_NONE                                             \
     : (class) == CLASS_E || (class) == CLASS_M || (class) == CLASS_R || (class) == CLASS_Z || (class) == CLASS_W || \
               (class) == CLASS_U || (class) == CLASS_Q || (class) == CLASS_N || (class) == CLASS_STI ? ROLE_RM     \
     : (class) == CLASS_G || (class) == CLASS_S || (class) == CLASS_SEG || (class) == CLASS_C ||                    \
               (class) == CLASS_D || (class) == CLASS_V || (class) == CLASS_P ? ROLE_REG                            \
     : (class) == CLASS_ACC ? ROLE_ACC                                                                              \
     : (class) == CLASS_O ? ROLE_MOFFS                                                                              \
     : (class) == CLASS_I || (class) == CLASS_A ? ROLE_IMM                                                          \
     : (class) == CLASS_J ? ROLE_REL                                                                                \
                          : ROLE_OTHER)
enum {
#define OPD(name, class, type) HAS_ROLE_##name = ROLE_OF(OPD_##name, CLASS_##class),
#include "operand.def"
#undef OPD
};

#define ROLES(a, b, c) ((a) << 8 | (b) << 4 | (c))
#define FORM_OF(roles)                                                                              \
    ((roles) == ROLES(0, 0, 0) ? FORM_NONE                                                          \
     : (roles) == ROLES(ROLE_RM, 0, 0) || (roles) == ROLES(0, ROLE_RM, 0) ? FORM_RM                 \
     : (roles) == ROLES(ROLE_REG, 0, 0) ? FORM_REG                                                  \
     : (roles) == ROLES(ROLE_RM, ROLE_REG, 0) || (roles) == ROLES(ROLE_RM, ROLE_ACC, 0) ||          \
               (roles) == ROLES(ROLE_MOFFS, ROLE_ACC, 0) ? FORM_RM_REG                              \
     : (roles) == ROLES(ROLE_REG, ROLE_RM, 0) || (roles) == ROLES(ROLE_ACC, ROLE_MOFFS, 0) ? FORM_REG_RM \
     : (roles) == ROLES(ROLE_RM, ROLE_IMM, 0) || (roles) == ROLES(ROLE_ACC, ROLE_IMM, 0) ? FORM_RM_IMM \
     : (roles) == ROLES(ROLE_REG, ROLE_RM, ROLE_IMM) ? FORM_REG_RM_IMM                              \
     : (roles) == ROLES(ROLE_RM, ROLE_REG, ROLE_IMM) ? FORM_RM_REG_IMM                              \
     : (roles) == ROLES(ROLE_RM, ROLE_REG, ROLE_CL) ? FORM_RM_REG_CL                                \
     : (roles) == ROLES(ROLE_RM, ROLE_ONE, 0) ? FORM_RM_1                                           \
     : (roles) == ROLES(ROLE_RM, ROLE_CL, 0) ? FORM_RM_CL                                           \
     : (roles) == ROLES(ROLE_IMM, 0, 0) || (roles) == ROLES(0, ROLE_IMM, 0) ? FORM_IMM              \
     : (roles) == ROLES(ROLE_REL, 0, 0) ? FORM_REL                                                  \
                                        : FORM_OTHER)

const struct isa_row isa_rows[] = {
#define I(map, opcode, pp, modrm, mode, op, a, b, c, d, attributes)                                      \
    {MAP_##map, opcode, PP_##pp, MR_##modrm, OP_##op, {OPD_##a, OPD_##b, OPD_##c, OPD_##d},               \
     (attributes) | MODE_##mode,                                                                          \
     OPD_##d != OPD__ ? FORM_OTHER : FORM_OF(ROLES(HAS_ROLE_##a, HAS_ROLE_##b, HAS_ROLE_##c))},
#include "isa.def"
#undef I
};
const unsigned isa_row_count = sizeof(isa_rows) / sizeof(isa_rows[0]);
